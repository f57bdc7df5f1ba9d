"""Which lines of the host's log are evidence: those that name this process, or what it waits for, since it began."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, LogLine, MountFact

# A kernel's line names a device or a task by a word of its own: `(dm-3)`, `loop0,`, `task worker:4243`, `[4242]`.
WORD = re.compile(r"[A-Za-z0-9_.!-]+")
MOST = 2


def lines_about(facts: Facts, mounts: Iterable[MountFact]) -> tuple[LogLine, ...]:
    """Return the last lines that speak of this VM's own threads, of these mounts or of the devices below them."""
    threads = facts.threads.value if isinstance(facts.threads, Known) else ()
    tids = {facts.vm.pid, *(thread.tid for thread in threads)}
    mounts = tuple(mounts)
    devices = {mount.source.rpartition("/")[2] for mount in mounts if mount.source.startswith("/dev/")}
    paths = {mount.path for mount in mounts if mount.path not in {"", "/"}}
    lines = [
        line
        for line in facts.host.log
        if line.at_seconds is not None
        and line.at_seconds >= facts.vm.started_seconds
        and _names(line.text, {*map(str, tids), *devices}, paths)
    ]
    return tuple(lines[-MOST:])


def _names(text: str, wanted: set[str], paths: set[str]) -> bool:
    said = text.partition("]")[2] or text  # what stands before is the time
    return bool(wanted & set(WORD.findall(said))) or bool(paths & set(said.split()))
