"""Read an ELF64 core, trusting nothing in it.

A core reaches us inside a bundle that anybody may have made: every offset, count and size in it is checked against the
file before it is used, and what lies outside is dropped. The worst that arbitrary bytes do is CoreError.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.examine.core.extent import WINDOW, CoreExtent
from autopsy.examine.core.registers import Registers as Registers  # noqa: PLC0414 - read from here, with the core

MACHINE_X86_64 = 62
PAGE = 4096
HIGHEST = 1 << 64
MOST_READ = 64 << 20  # no structure that we ask for is larger; a hostile size is
KEPT = 16 << 20  # of a core's file lie in our memory at once, or a little more
AROUND = 64 << 10  # what a fault maps beside the page that was asked for
MOST_NOTES = 64 << 20  # 10,000 threads of a kernel's own core, extended registers included
ESCAPED_COUNT = 0xFFFF  # PN_XNUM: more program headers than e_phnum can say

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
NHDR = struct.Struct("<III")
REGISTERS = struct.Struct("<27Q")
WORD = struct.Struct("<Q")

PT_LOAD = 1
PT_NOTE = 4
NT_PRSTATUS = 1
NT_AUXV = 6
NT_FILE = 0x46494C45
PRSTATUS_TID = 32  # offsets in struct elf_prstatus, LP64
PRSTATUS_REGISTERS = 112


class CoreError(Exception):
    """The bytes are no core that can be read, or not there."""


class NotInCore(CoreError):
    """The address was mapped or not, but its bytes were not frozen."""


@dataclass(frozen=True, slots=True)
class CoreThread:
    """One NT_PRSTATUS note."""

    tid: int
    registers: Registers


@dataclass(frozen=True, slots=True)
class MappedFile:
    """One entry of NT_FILE; `offset` is in bytes."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(frozen=True, slots=True)
class Load:
    """One mapping of the process; `readable`, `writable`, `executable` as the core's program header has them."""

    start: int
    end: int
    flags: int

    @property
    def readable(self) -> bool:
        """Return whether the process could read it."""
        return bool(self.flags & 4)

    @property
    def writable(self) -> bool:
        """Return whether the process could write it."""
        return bool(self.flags & 2)

    @property
    def executable(self) -> bool:
        """Return whether the process could run it."""
        return bool(self.flags & 1)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a core holds, already sorted, clipped and free of overlaps."""

    loads: tuple[Load, ...]
    extents: tuple[CoreExtent, ...]
    threads: tuple[CoreThread, ...]
    files: tuple[MappedFile, ...]
    auxv: Mapping[int, int]
    note_bytes: tuple[tuple[int, bytes], ...]


class Core:
    """The frozen process: memory, threads, mapped files.

    `loads` are the mappings as the core tells them (pieces of one mapping may follow each other); `extents` are the
    bytes that are really there.
    """

    def __init__(self, source: Path | int | Contents) -> None:
        contents = source if isinstance(source, Contents) else _map(source)
        self.loads = contents.loads
        self.extents = contents.extents
        self.threads = contents.threads
        self.files = contents.files
        self.auxv = contents.auxv
        self.note_bytes = contents.note_bytes
        self._kept = self._through = 0
        sources = {id(extent.source): extent.source for extent in self.extents}.values()
        self._mapped = tuple(source for source in sources if isinstance(source, mmap.mmap))
        self._starts = [extent.start for extent in self.extents]
        self._load_starts = [load.start for load in self.loads]

    @classmethod
    def of(cls, data: bytes) -> Core:
        """Return the core that the bytes are. Raises CoreError."""
        return cls(parse(data))

    @classmethod
    def over(cls, first: Core, delta: Core) -> Core:
        """Return the second snapshot: the delta's bytes, and the first's where the delta says "as before".

        A mapping that the delta does not name at all is gone, and so are its bytes.
        """
        extents = list(delta.extents)
        for load in delta.loads:
            present = list(delta.extents_within(load.start, load.end))
            for start, end in _gaps(load.start, load.end, present):
                extents.extend(_cut(extent, start, end) for extent in first.extents_within(start, end))
        extents.sort(key=lambda extent: extent.start)
        return cls(
            Contents(
                loads=delta.loads,
                extents=tuple(extents),
                threads=delta.threads,
                files=delta.files or first.files,
                auxv=delta.auxv or first.auxv,
                note_bytes=delta.note_bytes,
            )
        )

    def read(self, address: int, size: int) -> bytes:
        """Return the bytes. Raises NotInCore if any of them is absent, CoreError for a size that is no structure's."""
        if not 0 <= size <= MOST_READ:
            raise CoreError(f"{size} bytes at {address:#x} are more than any structure holds")
        self._kept += AROUND + size
        if self._kept > KEPT:
            self.let_go()
            self._kept = AROUND + size
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            raise NotInCore(f"{address:#x} is not in the core")
        extent = self.extents[index]
        place = extent.offset + address - extent.start
        if address + size <= extent.end:
            return extent.source[place : place + size]
        parts: list[bytes] = []
        position = address
        while position < address + size:
            if index == len(self.extents):
                raise NotInCore(f"{position:#x} is not in the core")
            extent = self.extents[index]
            if not extent.start <= position < extent.end:
                raise NotInCore(f"{position:#x} is not in the core")
            end = min(extent.end, address + size)
            parts.append(
                extent.source[extent.offset + position - extent.start : extent.offset + end - extent.start],
            )
            position = end
            index += 1
        return b"".join(parts)

    def word(self, address: int) -> int:
        """Return the 64-bit word. Raises NotInCore."""
        return int(WORD.unpack(self.read(address, 8))[0])

    def int32(self, address: int) -> int:
        """Return the signed 32-bit word. Raises NotInCore."""
        return int.from_bytes(self.read(address, 4), "little", signed=True)

    def string(self, address: int, most: int = 256) -> str:
        """Return the C string, cut at `most` bytes or where the frozen bytes end.

        Raises NotInCore if not even the first byte is there.
        """
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.extents[index].end:
            raise NotInCore(f"{address:#x} is not in the core")
        data = self.read(address, min(most, self.extents[index].end - address))
        return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def holds(self, address: int, size: int = 1) -> bool:
        """Return whether all of these bytes were frozen."""
        index = bisect_right(self._starts, address) - 1
        position = address
        while position < address + size:
            if index < 0 or index >= len(self.extents) or not self.extents[index].start <= position:
                return False
            if position >= self.extents[index].end:
                return False
            position = self.extents[index].end
            index += 1
        return True

    def load_at(self, address: int) -> Load | None:
        """Return the program header that covers the address, if one does."""
        index = bisect_right(self._load_starts, address) - 1
        if index < 0 or address >= self.loads[index].end:
            return None
        return self.loads[index]

    def one_after_another(self) -> Iterator[CoreExtent]:
        """Yield every extent, in order, and let go of what was gone through: who searches a core needs each once."""
        for extent in self.extents:
            yield extent
            self.gone_through(extent.end - extent.start)

    def gone_through(self, size: int) -> None:
        """Take note that so many bytes were read that are needed no more, and let go of them once they are many."""
        self._through += size
        if self._through >= WINDOW:
            self.let_go()

    def let_go(self) -> None:
        """Take all that was read out of our memory again: it is in the page cache still."""
        self._kept = self._through = 0
        for source in self._mapped:
            source.madvise(mmap.MADV_DONTNEED)

    def extents_within(self, start: int, end: int) -> Iterator[CoreExtent]:
        """Yield the extents that touch the range, in order."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self.extents) and self.extents[index].start < end:
            if self.extents[index].end > start:
                yield self.extents[index]
            index += 1


def parse(data: mmap.mmap | bytes) -> Contents:
    """Return what the core holds. Raises CoreError."""
    if len(data) < EHDR.size or data[:6] != b"\x7fELF\x02\x01":
        raise CoreError("not a little-endian ELF64 file")
    (_, kind, machine, _, _, headers_at, sections_at, _, _, header_size, count, _, _, _) = EHDR.unpack(
        data[: EHDR.size]
    )
    if kind != 4 or header_size != PHDR.size:
        raise CoreError("an ELF file, but no core")
    if machine != MACHINE_X86_64:
        raise CoreError(f"a core of ELF machine {machine}; only x86-64 can be examined")
    if count == ESCAPED_COUNT and sections_at + SHDR.size <= len(data):
        count = SHDR.unpack(data[sections_at : sections_at + SHDR.size])[7]
    there = max(0, len(data) - headers_at) // PHDR.size
    table = data[headers_at : headers_at + min(count, there) * PHDR.size]
    segments: list[tuple[int, int, int, int, int]] = []
    notes: list[tuple[int, int]] = []
    for kind, flags, offset, address, _, stored, size, _ in PHDR.iter_unpack(table):
        if kind == PT_LOAD and size:
            segments.append((address, min(address + size, HIGHEST), flags, offset, stored))
        elif kind == PT_NOTE:
            notes.append((offset, stored))
    loads, extents = _lay_out(data, segments)
    return _with_notes(data, notes, loads, extents)


def _map(file: Path | int) -> Contents:
    try:
        with open(file, "rb", closefd=isinstance(file, Path)) as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CoreError(f"{file.name if isinstance(file, Path) else 'core'} cannot be read: {error}") from error
    return parse(data)


def _lay_out(
    data: mmap.mmap | bytes, segments: list[tuple[int, int, int, int, int]]
) -> tuple[tuple[Load, ...], tuple[CoreExtent, ...]]:
    """Sort the segments; where two overlap, the one that begins first keeps the bytes."""
    loads: list[Load] = []
    extents: list[CoreExtent] = []
    free_from = 0
    for start, end, flags, offset, stored in sorted(segments):
        first = max(start, free_from)
        if first >= end:
            continue
        free_from = end
        loads.append(Load(first, end, flags))
        inside = min(end, start + min(stored, max(0, len(data) - offset)))
        if inside > first:
            extents.append(CoreExtent(first, inside, offset + first - start, data))
    return tuple(loads), tuple(extents)


def _with_notes(
    data: mmap.mmap | bytes,
    places: list[tuple[int, int]],
    loads: tuple[Load, ...],
    extents: tuple[CoreExtent, ...],
) -> Contents:
    threads: list[CoreThread] = []
    files: tuple[MappedFile, ...] = ()
    auxv: dict[int, int] = {}
    kept: list[tuple[int, bytes]] = []
    for kind, body in _notes(data, places):
        kept.append((kind, body))
        if kind == NT_PRSTATUS and len(body) >= PRSTATUS_REGISTERS + REGISTERS.size:
            (tid,) = struct.unpack_from("<I", body, PRSTATUS_TID)
            threads.append(CoreThread(tid, Registers(*REGISTERS.unpack_from(body, PRSTATUS_REGISTERS))))
        elif kind == NT_AUXV and not auxv:
            auxv = dict(struct.iter_unpack("<QQ", body[: len(body) & ~15]))
        elif kind == NT_FILE and not files:
            files = _mapped_files(body)
    return Contents(loads, extents, tuple(threads), files, auxv, tuple(kept))


def _notes(data: mmap.mmap | bytes, places: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """Yield (type, descriptor) of every note whose owner is CORE."""
    left = MOST_NOTES
    for offset, size in places:
        position = offset
        last = min(len(data), offset + min(size, left))
        left -= max(0, last - offset)
        while position + NHDR.size <= last:
            name_size, body_size, kind = NHDR.unpack(data[position : position + NHDR.size])
            name_at = position + NHDR.size
            body_at = name_at + (name_size + 3 & ~3)
            position = body_at + (body_size + 3 & ~3)
            if body_at + body_size > last:
                break
            if data[name_at : name_at + min(name_size, 5)].rstrip(b"\0") == b"CORE":
                yield kind, data[body_at : body_at + body_size]


def _mapped_files(body: bytes) -> tuple[MappedFile, ...]:
    if len(body) < 16:
        return ()
    count, page = struct.unpack_from("<QQ", body)
    count = min(count, (len(body) - 16) // 24)
    names = body[16 + count * 24 :].split(b"\0", count)
    ranges = struct.iter_unpack("<QQQ", body[16 : 16 + count * 24])
    return tuple(
        MappedFile(start, end, offset * page, name.decode("utf-8", "surrogateescape"))
        for (start, end, offset), name in zip(ranges, names, strict=False)
        if start < end
    )


def _gaps(start: int, end: int, present: list[CoreExtent]) -> Iterator[tuple[int, int]]:
    for extent in present:
        if extent.start > start:
            yield start, extent.start
        start = max(start, extent.end)
    if start < end:
        yield start, end


def _cut(extent: CoreExtent, start: int, end: int) -> CoreExtent:
    first = max(start, extent.start)
    return CoreExtent(first, min(end, extent.end), extent.offset + first - extent.start, extent.source)
