"""Find the ELF file behind a mapping of a process that may be long gone, and be sure that it is the same file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import zstandard

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.examine.core.elf import Elf, ElfError
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import MappedFile

DELETED = " (deleted)"
DEBUG_ROOT = Path("/usr/lib/debug")
MOST_BINARY = 1 << 30  # an unstripped QEMU has some 300 MB
# Where a system keeps programs and libraries: a name out of a core leads nowhere else.
HOMES = tuple(map(Path, ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store")))


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is what was mapped. `source` says in words where it came from."""

    elf: Elf
    path: Path
    source: str


class Files:
    """Where this examination looks for ELF files; each is looked for once."""

    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        self._given = [file for path in frozen.debug_files if (file := _opened(path, "given"))]
        self._stored: FoundFile | None = None
        self._unpacked = False

    def mapped(self, part: MappedFile, build_id: str) -> FoundFile | None:
        """Return the file of a mapping: the process's own while it lives, else one with the same build-id."""
        for path, source in self._places(part):
            if (file := _opened(path, source)) and _same(file.elf, build_id, trusted=source == "process"):
                return file
        for file in self._given:
            if build_id and file.elf.build_id == build_id and _has_code(file.elf):
                return file
        if build_id and (stored := self._bundled()) and stored.elf.build_id == build_id:
            return stored
        here = Path(os.path.normpath(part.path.removesuffix(DELETED)))
        if not build_id or not any(here.is_relative_to(home) for home in HOMES):
            return None
        found_here = _opened(here, "this machine")
        return found_here if found_here and found_here.elf.build_id == build_id else None

    def debug(self, build_id: str) -> FoundFile | None:
        """Return the separate debug file of a build-id, if one is at hand or this machine has it installed."""
        if not build_id:
            return None
        for file in self._given:
            if file.elf.build_id == build_id and (file.elf.has_dwarf or file.elf.has_symtab):
                return file
        for folder in installed_debug_files():
            installed = _opened(folder / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug", "installed debug file")
            if installed and installed.elf.build_id == build_id:
                return installed
        return None

    def fetched(self, kind: str, build_id: str) -> FoundFile | None:
        """Return what a debuginfod server has, if the operator named one. `kind` is "debuginfo" or "executable"."""
        path = self._frozen.fetch(kind, build_id) if build_id else None
        file = _opened(path, "debuginfod") if path else None
        return file if file and file.elf.build_id == build_id else None

    def _places(self, part: MappedFile) -> Iterator[tuple[Path, str]]:
        yield from ((mapping.path, mapping.source) for mapping in self._frozen.mapped if mapping.start == part.start)

    def _bundled(self) -> FoundFile | None:
        """Return the binary that was stored beside the core, unpacked once."""
        if not self._unpacked:
            self._unpacked = True
            packed = self._frozen.read(layout.BINARY)
            if packed and (plain := _unpack(packed)):
                target = self._frozen.scratch / "binary"
                target.write_bytes(plain)
                self._stored = _opened(target, "bundle")
        return self._stored


def _unpack(packed: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as stream:
            plain = stream.read(MOST_BINARY + 1)
    except zstandard.ZstdError:
        return b""
    return plain if len(plain) <= MOST_BINARY else b""


def _opened(path: Path, source: str) -> FoundFile | None:
    try:
        return FoundFile(Elf(path), path, source)
    except ElfError:
        return None


def _same(elf: Elf, build_id: str, *, trusted: bool) -> bool:
    """Return whether this is the mapped file; one without a build-id is believed only from the process itself."""
    return elf.build_id == build_id if build_id else trusted


def installed_debug_files() -> tuple[Path, ...]:
    """Return where this machine's debug files lie, if nobody but root put them there."""
    try:
        facts = os.stat(DEBUG_ROOT)
    except OSError:
        return ()
    return (DEBUG_ROOT,) if facts.st_uid == 0 and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ()


def _has_code(elf: Elf) -> bool:
    """Return whether the file holds the bytes that are mapped, not only their debug information."""
    return any(segment.stored for segment in elf.segments if segment.executable)
