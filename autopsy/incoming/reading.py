"""Reads files that somebody gave for what they hold, whatever they are called: this runs where it can do no harm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from autopsy.incoming import core_file, streams
from autopsy.incoming.gdb_text import Scan
from autopsy.incoming.material import CoreFound, Material, Seen
from autopsy.incoming.streams import HEAD, MOST_TEXT, Stream

MOST_LAYERS = 3  # of compression around one file
KNOWN = {
    "elf": "an ELF file, but no core",
    "qcow2": "a disk image (qcow2)",
    "kdump": "a dump of a guest or a kernel (kdump)",
    "zip": "a zip archive: unpack it first",
    "lz4": "something compressed with lz4: unpack it first (`lz4 -d`)",
    "tar": "an archive",
    "binary": "binary data of no kind that is known",
}


class Reading:
    """The files of one import on their way through."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.scan = Scan()
        self.core: CoreFound | None = None
        self.left = MOST_TEXT
        self.notes: list[str] = []

    def take(self, descriptor: int) -> Seen:
        """Read one file."""
        return self._stream(cast("IO[bytes]", io.BufferedReader(Stream(descriptor), streams.PIECE)), descriptor, 0)

    def _stream(self, stream: IO[bytes], descriptor: int | None, layer: int) -> Seen:
        head = stream.read(HEAD)
        kind = streams.kind_of(head)
        if not head:
            return Seen(what="an empty file", of_use=False)
        if layer < MOST_LAYERS:
            whole = io.BytesIO(head) if descriptor is None else io.BufferedReader(Stream(descriptor), streams.PIECE)
            if descriptor is not None and (inner := streams.unpacked(cast("IO[bytes]", whole), kind)) is not None:
                return self._stream(inner, None, layer + 1)
        if kind == "elf" and core_file.is_core(head):
            return self._core(head, stream, descriptor)
        if kind == "text":
            return self._text(head, stream)
        return Seen(what=KNOWN.get(kind, f"something compressed ({kind})"), of_use=False)

    def _core(self, head: bytes, stream: IO[bytes], descriptor: int | None) -> Seen:
        if self.core is not None:
            return Seen(what="another core: one is examined at a time", of_use=False)
        try:
            self.core = core_file.take(head, stream, descriptor, self.scratch / "core")
        except core_file.NoCore as error:
            return Seen(what=f"a core that cannot be examined: {error}", of_use=False)
        self.notes += self.core.notes
        return Seen(what="a core", of_use=True)

    def _text(self, head: bytes, stream: IO[bytes]) -> Seen:
        before = self.scan.frames
        told: list[str] = []
        self.scan.end_of_file()
        for line in streams.lines(head, stream, max(1, self.left), told):
            self.left -= len(line)
            self.scan.feed(line)
        self.scan.end_of_file()
        self.notes += told
        if self.scan.frames > before:
            return Seen(what="a backtrace", of_use=True)
        return Seen(what="text without a stack, a core or anything else of QEMU's that is known", of_use=False)

    def end(self, seen: Sequence[Seen]) -> Material:
        """Return all that was found."""
        paste = self.scan.end()
        return Material(paste=paste, seen=tuple(seen), core=self.core, notes=(*self.notes, *paste.notes))


def read(descriptors: Sequence[int], scratch: Path) -> Material:
    """Return what the files hold. What one of them does to its reader is told, and costs the others nothing."""
    reading = Reading(scratch)
    seen = []
    for descriptor in descriptors:
        try:
            seen.append(reading.take(descriptor))
        except Exception as error:  # noqa: BLE001 - a stranger's file may break any reader, and the next may be whole
            seen.append(
                Seen(what=f"a file that could not be read to its end ({type(error).__name__}: {error})", of_use=False)
            )
    return reading.end(seen)
