"""Find the ELF file behind a mapping of a process that may be long gone, and be sure that it is the same file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from autopsy.bundle import layout
from autopsy.examine.core.elf import Elf, ElfError
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import MappedFile

DELETED = " (deleted)"
DEBUG_ROOT = Path("/usr/lib/debug")
MOST_BINARY = 1 << 30  # an unstripped QEMU has some 300 MB
FETCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is what was mapped. `source` says in words where it came from."""

    elf: Elf
    path: Path
    source: str


class Files:
    """Where this examination looks for ELF files; each is looked for once."""

    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        self._given = [found for path in frozen.debug_files if (found := _opened(path, "given"))]
        self._stored: Found | None = None
        self._unpacked = False

    def mapped(self, part: MappedFile, build_id: str) -> Found | None:
        """Return the file of a mapping: the process's own while it lives, else one with the same build-id."""
        for path, source in self._places(part, build_id):
            if (found := _opened(path, source)) and _same(found.elf, build_id, trusted=source == "process"):
                return found
        for found in self._given:
            if build_id and found.elf.build_id == build_id and _has_code(found.elf):
                return found
        if build_id and (stored := self._bundled()) and stored.elf.build_id == build_id:
            return stored
        here = Path(part.path.removesuffix(DELETED))
        if build_id and (found := _opened(here, "this machine")) and found.elf.build_id == build_id:
            return found
        return None

    def debug(self, build_id: str) -> Found | None:
        """Return the separate debug file of a build-id, if one is at hand or this machine has it installed."""
        if not build_id:
            return None
        for found in self._given:
            if found.elf.build_id == build_id and (found.elf.has_dwarf or found.elf.has_symtab):
                return found
        installed = DEBUG_ROOT / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        found_here = _opened(installed, "installed debug file")
        return found_here if found_here and found_here.elf.build_id == build_id else None

    def fetched(self, kind: str, build_id: str) -> Found | None:
        """Return what a debuginfod server has, if the operator named one. `kind` is "debuginfo" or "executable"."""
        if not self._frozen.debuginfod or not build_id:
            return None
        environment = {
            **os.environ,
            "DEBUGINFOD_URLS": self._frozen.debuginfod,
            "DEBUGINFOD_CACHE_PATH": str(self._frozen.scratch / "debuginfod"),
        }
        try:
            answer = subprocess.run(
                ["debuginfod-find", kind, build_id],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=FETCH_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        found = _opened(Path(os.fsdecode(answer.stdout.strip())), "debuginfod")
        return found if found and found.elf.build_id == build_id else None

    def _places(self, part: MappedFile, build_id: str) -> Iterator[tuple[Path, str]]:
        process = self._frozen.process
        if process is None:
            return
        yield process / "map_files" / f"{part.start:x}-{part.end:x}", "process"
        if part.path.startswith("/") and build_id:
            yield Path(f"{process}/root{part.path.removesuffix(DELETED)}"), "process's root"
            yield process / "exe", "process's exe"

    def _bundled(self) -> Found | None:
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


def _opened(path: Path, source: str) -> Found | None:
    try:
        return Found(Elf(path), path, source)
    except ElfError:
        return None


def _same(elf: Elf, build_id: str, *, trusted: bool) -> bool:
    """Return whether this is the mapped file; one without a build-id is believed only from the process itself."""
    return elf.build_id == build_id if build_id else trusted


def _has_code(elf: Elf) -> bool:
    """Return whether the file holds the bytes that are mapped, not only their debug information."""
    return any(segment.stored for segment in elf.segments if segment.executable)
