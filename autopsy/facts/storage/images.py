"""Which open file an image's name leads to: by device and inode, or by the set of a descriptor that was passed."""

from __future__ import annotations

import re

from autopsy.bundle import layout
from autopsy.bundle.records import GuardLook
from autopsy.facts.cite import Cite, Fact, Known
from autopsy.facts.command_line import CommandLine, pairs, parse, string
from autopsy.facts.evidence import Evidence, section_map, text
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import Descriptor, FailingFileFact
from autopsy.facts.threads import int_of

IDENTITY = re.compile(r"(\d+:\d+) (\d+) (/.*)", re.DOTALL)


def gather_images(evidence: Evidence, line: CommandLine, descriptors: Fact[tuple[Descriptor, ...]]) -> dict[str, str]:
    """Return the open file of each image that is known by another name, by that name."""
    if not isinstance(descriptors, Known):
        return {}
    files = [file for file in descriptors.value if file.kind in {"file", "block device"}]
    return {**_by_identity(evidence, files), **_by_set(line, files)}


def _by_identity(evidence: Evidence, files: list[Descriptor]) -> dict[str, str]:
    targets = {(file.device, file.inode): file.target for file in files if file.device and file.inode}
    paths = {}
    for section in section_map(evidence, layout.PROC_FDS, layout.IMAGES).values():
        identity = IDENTITY.fullmatch(text(section)) if not section.error else None
        if identity and (target := targets.get((identity[1], int(identity[2])))):
            paths[identity[3]] = target
    return paths


def _by_set(line: CommandLine, files: list[Descriptor]) -> dict[str, str]:
    """Read -add-fd: QEMU opens what it is told to find in a set by duplicating the descriptor that was passed."""
    targets = {file.fd: file.target for file in files}
    sets: dict[str, list[str]] = {}
    for name, value in pairs(line.arguments):
        if name == "add-fd":
            options = parse(value, "fd")
            fd = int_of(string(options, "fd"))
            if fd in targets:
                sets.setdefault(f"/dev/fdset/{string(options, 'set')}", []).append(targets[fd])
    # The same file twice, to read and to write, is one.
    return {path: paths[0] for path, paths in sets.items() if len(set(paths)) == 1}


def gather_failing_files(evidence: Evidence) -> Fact[tuple[FailingFileFact, ...]]:
    """Return the files whose storage answered the guard's question with an error."""
    look = decode(evidence, layout.QUERY_BLOCK, layout.GUARD, GuardLook)
    if not isinstance(look, Known):
        return look
    files = tuple(
        FailingFileFact(
            path=file.path, error=file.error, cite=Cite(look.cite.file, 0, f"a stat of {file.path}: {file.error}")
        )
        for file in look.value.failing
    )
    return Known(files, look.cite)
