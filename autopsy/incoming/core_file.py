"""Copies a core without the guest's memory: header by header, in one pass over what is there."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from signal import Signals
from typing import IO

from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import (
    EHDR,
    ESCAPED_COUNT,
    MACHINE_X86_64,
    MOST_NOTES,
    NHDR,
    NT_FILE,
    NT_PRSTATUS,
    PHDR,
    PRSTATUS_REGISTERS,
    PRSTATUS_TID,
    PT_LOAD,
    PT_NOTE,
    REGISTERS,
    SHDR,
)
from autopsy.incoming.material import CoreFound

PIECE = 1 << 20
CRASHES = frozenset({Signals.SIGILL, Signals.SIGABRT, Signals.SIGBUS, Signals.SIGFPE, Signals.SIGSEGV, Signals.SIGSYS})
MOST_SEGMENTS = 200_000
MOST_KEPT = 512 << 20  # of memory: no QEMU without its guest has more that tells anything
GUEST = 128 << 20  # a mapping of no file that is as large is the guest's memory, or a cache
ET_CORE = 4
NT_PRPSINFO = 3
NT_SIGINFO = 0x53494749
SIGNALLED = 12  # offset of pr_cursig in struct elf_prstatus
PRPSINFO_PID_AT = 24
PRPSINFO_ARGS = slice(56, 136)
RSP = 19  # of the registers


class NoCore(Exception):
    """It is no core of a QEMU on x86-64."""


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One program header, with its place in the table."""

    kind: int
    flags: int
    offset: int
    address: int
    stored: int
    size: int
    align: int


def is_core(head: bytes) -> bool:
    """Tell whether the first bytes are a core's."""
    return head[:6] == b"\x7fELF\x02\x01" and head[16:18] == b"\x04\0"


class Source:
    """The core's bytes in rising order; those of a file that are only a hole are not read."""

    def __init__(self, head: bytes, stream: IO[bytes], descriptor: int | None) -> None:
        self.head, self.stream, self.descriptor = head, stream, descriptor
        self.at = 0
        self.ahead = head
        self.ended = False

    def parts(self, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of what is there between two offsets."""
        if self.descriptor is not None:
            yield from self._from_file(start, start + size)
        else:
            yield from self._from_stream(start, start + size)

    def _from_file(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        descriptor = self.descriptor if self.descriptor is not None else -1
        length = os.fstat(descriptor).st_size
        self.ended = self.ended or end > length
        while start < min(end, length):
            try:
                start = max(start, os.lseek(descriptor, start, os.SEEK_DATA))
                hole = os.lseek(descriptor, start, os.SEEK_HOLE)
            except OSError:  # nothing but a hole is left
                return
            while start < min(hole, end):
                data = os.pread(descriptor, min(PIECE, hole - start, end - start), start)
                if not data:
                    return
                yield start, data
                start += len(data)

    def _from_stream(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        while self.at < end:
            if self.ahead:
                data, self.ahead = self.ahead, b""
            else:
                data = self.stream.read(PIECE)
            if not data:
                self.ended = True
                return
            first, last = max(start, self.at), min(end, self.at + len(data))
            if first < last:
                yield first, data[first - self.at : last - self.at]
            if last < self.at + len(data):
                self.ahead = data[last - self.at :] if last > self.at else data
                self.at = max(self.at, last)
                return
            self.at += len(data)

    def whole(self, start: int, size: int) -> bytes:
        """Return some bytes, holes as zeros, and fewer where the core ends."""
        read = bytearray()
        for offset, data in self.parts(start, size):
            read += bytes(max(0, offset - start - len(read))) + data
        return bytes(read)


def take_core(head: bytes, stream: IO[bytes], descriptor: int | None, destination: int) -> CoreFound:
    """Write the core to an open file, `destination`, without what is the guest's, and say what it is.

    Raises:
        NoCore: it cannot be examined.
    """
    source = Source(head, stream, descriptor)
    segments = _segments(source, head)
    notes_at = [segment for segment in segments if segment.kind == PT_NOTE]
    if sum(note.stored for note in notes_at) > MOST_NOTES:
        raise NoCore("its notes are larger than any core's")
    bodies = [
        source.whole(segment.offset, segment.stored) for segment in sorted(notes_at, key=lambda segment: segment.offset)
    ]
    notes = _Notes()
    for body in bodies:
        notes.read(body)
    loads = sorted((segment for segment in segments if segment.kind == PT_LOAD), key=lambda segment: segment.offset)
    kept = _chosen(loads, notes)
    left_out = sum(load.stored for load in loads) - sum(segment.stored for segment in kept)
    _write(destination, source, bodies, loads, kept)
    words = []
    if notes.signal not in CRASHES:  # gcore leaves the one by which it stopped the process
        notes.signal = 0
    if source.ended:
        words.append("the core is truncated: what lay at its end is missing, and nothing is concluded from that")
    if left_out:
        words.append(f"{left_out >> 20} MiB of memory were left out: the guest's, and what is as large")
    return CoreFound(
        pid=notes.pid,
        threads=len(notes.stacks),
        command=notes.command,
        signal=notes.signal,
        signal_tid=notes.first if notes.signal else 0,
        left_out_bytes=left_out,
        truncated=source.ended,
        notes=tuple(words),
    )


def _segments(source: Source, head: bytes) -> list[ProgramHeader]:
    if len(head) < EHDR.size:
        raise NoCore("it ends within its first header")
    (_, kind, machine, _, _, table_at, sections_at, _, _, size, count, _, _, _) = EHDR.unpack(head[: EHDR.size])
    if machine != MACHINE_X86_64:
        raise NoCore(f"it is of ELF machine {machine}; only x86-64 can be examined")
    if kind != ET_CORE or size != PHDR.size:
        raise NoCore("its headers are no core's")
    if count == ESCAPED_COUNT and source.descriptor is not None:
        section = source.whole(sections_at, SHDR.size)
        count = SHDR.unpack(section)[7] if len(section) == SHDR.size else count
    table = source.whole(table_at, min(count, MOST_SEGMENTS) * PHDR.size)
    return [
        ProgramHeader(kind, flags, offset, address, stored, memory, align)
        for kind, flags, offset, address, _, stored, memory, align in PHDR.iter_unpack(
            table[: len(table) // PHDR.size * PHDR.size]
        )
        if stored < 1 << 48 and offset < 1 << 62 and memory < 1 << 60
    ]


class _Notes:
    """What the notes say: whose core it is, where its stacks are, which mappings are files."""

    def __init__(self) -> None:
        self.pid = self.signal = self.first = 0
        self.command = ""
        self.stacks: list[int] = []
        self.files: list[tuple[int, int]] = []

    def read(self, body: bytes) -> None:
        """Take one PT_NOTE segment."""
        at = 0
        while at + NHDR.size <= len(body):
            name_size, size, kind = NHDR.unpack_from(body, at)
            start = at + NHDR.size + (name_size + 3 & ~3)
            at = start + (size + 3 & ~3)
            if start + size > len(body):
                return
            self._note(kind, body[start : start + size])

    def _note(self, kind: int, data: bytes) -> None:
        if kind == NT_PRSTATUS and len(data) >= PRSTATUS_REGISTERS + REGISTERS.size:
            registers = REGISTERS.unpack_from(data, PRSTATUS_REGISTERS)
            self.stacks.append(registers[RSP])
            if len(self.stacks) == 1:
                (self.first,) = struct.unpack_from("<I", data, PRSTATUS_TID)
                (self.signal,) = struct.unpack_from("<H", data, SIGNALLED)
        elif kind == NT_PRPSINFO and len(data) >= PRPSINFO_ARGS.stop:
            (self.pid,) = struct.unpack_from("<I", data, PRPSINFO_PID_AT)
            self.command = data[PRPSINFO_ARGS].split(b"\0")[0].decode("utf-8", "replace").strip()
        elif kind == NT_FILE and len(data) >= 16 and not self.files:
            count = min(struct.unpack_from("<Q", data)[0], (len(data) - 16) // 24)
            self.files = [(start, end) for start, end, _ in struct.iter_unpack("<QQQ", data[16 : 16 + count * 24])]


def _chosen(loads: list[ProgramHeader], notes: _Notes) -> list[ProgramHeader]:
    """Return the segments that are kept: stacks first, then files' own data, then the smaller before the larger."""
    starts = sorted(notes.stacks)
    files = sorted(notes.files)
    file_starts = [start for start, _ in files]

    def holds_stack(segment: ProgramHeader) -> bool:
        place = bisect_right(starts, segment.address + segment.size - 1)
        return place > 0 and starts[place - 1] >= segment.address

    def is_file(segment: ProgramHeader) -> bool:
        place = bisect_right(file_starts, segment.address) - 1
        return place >= 0 and segment.address < files[place][1]

    kept, left = [], MOST_KEPT
    for load in sorted(loads, key=lambda one: (not holds_stack(one), not is_file(one), one.stored)):
        guests = load.stored >= GUEST and not holds_stack(load)
        if load.stored and load.stored <= left and not guests:
            kept.append(load)
            left -= load.stored
    return kept


def _write(
    destination: int, source: Source, notes: list[bytes], loads: list[ProgramHeader], kept: list[ProgramHeader]
) -> None:
    """Write headers, notes and the segments that are kept, one after the other."""
    count = len(loads) + len(notes)
    if count >= ESCAPED_COUNT:
        raise NoCore("it has more mappings than any QEMU")
    wanted = set(map(id, kept))
    at = EHDR.size + count * PHDR.size
    headers = []
    for body in notes:
        headers.append(PHDR.pack(PT_NOTE, 0, at, 0, 0, len(body), 0, 4))
        at += len(body)
    at += -at % 4096
    places: dict[int, int] = {}
    for load in loads:
        stored = load.stored if id(load) in wanted else 0
        headers.append(PHDR.pack(PT_LOAD, load.flags, at, load.address, 0, stored, load.size, 4096))
        places[id(load)] = at
        at += stored
    with open(destination, "r+b", closefd=False) as file:
        file.write(
            EHDR.pack(
                b"\x7fELF\x02\x01\x01" + bytes(9),
                ET_CORE,
                MACHINE_X86_64,
                1,
                0,
                EHDR.size,
                0,
                0,
                64,
                56,
                count,
                0,
                0,
                0,
            )
        )
        file.write(b"".join(headers))
        file.write(b"".join(notes))
        for load in loads:
            if id(load) not in wanted:
                continue
            for offset, data in source.parts(load.offset, load.stored):
                file.seek(places[id(load)] + offset - load.offset)
                file.write(data)
        if file.tell() < at:  # what was a hole at its end
            file.seek(at - 1)
            file.write(b"\0")
