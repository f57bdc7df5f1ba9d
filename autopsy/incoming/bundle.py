"""Lays out what others took as the folder of a capture: manifest, readme, evidence, the files as they were given."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from autopsy import __version__
from autopsy.bundle import layout
from autopsy.bundle.manifest import (
    SCHEMA,
    Clocks,
    GivenFile,
    Host,
    Imported,
    Manifest,
    StepRecord,
    TargetRecord,
    encode_manifest,
)
from autopsy.bundle.readme import readme_of_import
from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.incoming.material import Material
from autopsy.incoming.stored import Stored

MOST_GIVEN = 32 << 20  # bytes of one file that are kept; all of a capture's evidence is bounded, too
MOST_ALL_GIVEN = 96 << 20
NOT_TAKEN = "imported: not taken"
NOWHERE = Host(name="", kernel="", architecture="x86_64", distribution="", page_size=4096, cpus=0, boot_id="")


@dataclass(frozen=True, slots=True)
class Given:
    """One file as it was given: its own name, and an open descriptor."""

    name: str
    descriptor: int


@dataclass(frozen=True, slots=True)
class Typed:
    """When an import began, and what was typed for it."""

    began: Clocks
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Laid:
    """What was laid out: the manifest, and whether the core lies in the folder."""

    manifest: Manifest
    core: bool


@dataclass(slots=True)
class ImportFolder:
    """The folder of one import, and what is left of the room for the files themselves."""

    folder: Path
    left: int = MOST_ALL_GIVEN
    steps: dict[str, str] = field(default_factory=dict)

    def keep(self, number: int, given: Given, what: str) -> GivenFile:
        """Keep a file as it was given, if it is no larger than evidence is; its checksum is told in any case."""
        size = os.fstat(given.descriptor).st_size
        stored = layout.evidence(layout.GIVEN, f"{number}") if size <= min(MOST_GIVEN, self.left) else ""
        if not stored:
            return GivenFile(name=given.name, what=what, size=size, sha256="")
        data = os.pread(given.descriptor, size, 0)
        self.left -= len(data)
        private.store_below(self.folder, stored, data)
        digest = hashlib.sha256(data).hexdigest()
        return GivenFile(name=given.name, what=what, size=size, sha256=digest, stored=stored)

    def put(self, path: str, data: bytes) -> None:
        """Store one piece of evidence, and remember its step."""
        private.store_below(self.folder, path, data)
        self.steps[path.split("/")[1]] = "read out of what was imported"


def lay_out(folder: Path, given: Sequence[Given], material: Material, stored: Stored, typed: Typed) -> Laid:
    """Write everything but the examination, the diagnosis and the seal."""
    began = typed.began
    layer = ImportFolder(folder)
    files = tuple(
        layer.keep(number, file, seen.what)
        for number, (file, seen) in enumerate(zip(given, material.seen, strict=True), 1)
    )
    for path, data in {**material.files, **stored.files}.items():
        layer.put(path, data)
    target = _target(material, stored)
    manifest = Manifest(
        schema=SCHEMA,
        autopsy=__version__,
        options=typed.words,
        began=began,
        ended=began,
        host=NOWHERE,
        target=target,
        steps=tuple(_step(name, layer.steps, began) for name in layout.STEPS),
        notes=(*material.notes, *stored.notes),
        imported=Imported(files=files, whole=material.core is not None, crash=material.crash),
    )
    private.store(folder / layout.README, readme_of_import(__version__, target, began).encode())
    write_manifest(folder, manifest)
    return Laid(manifest, material.core is not None)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, as it is by now."""
    private.store(folder / layout.MANIFEST, encode_manifest(manifest))


def _step(name: str, taken: dict[str, str], began: Clocks) -> StepRecord:
    return StepRecord(
        name=name,
        impact="none",
        outcome="Collected" if name in taken else "Skipped",
        start_ns=began.monotonic_ns,
        end_ns=began.monotonic_ns,
        why=taken.get(name, NOT_TAKEN),
    )


def _target(material: Material, stored: Stored) -> TargetRecord:
    machine = material.machines[0] if material.machines else None
    core = material.core
    command = (machine.arguments[:1] if machine else ()) or (core.command if core else material.paste.program).split()[
        :1
    ]
    return TargetRecord(
        pid=stored.main or (core.pid if core else 0) or (machine.pid if machine else 0),
        name=machine.name if machine and machine.name else "imported",
        manager=machine.manager if machine else "process",
        start_ticks=0,
        exe=command[0] if command else "",
        exe_deleted=False,
        build_id="",
        qemu_version=material.qemu_version,
    )
