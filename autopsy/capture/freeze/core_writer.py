"""Writes an ELF64 core that gdb, drgn and eu-readelf open as they would open the kernel's."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autopsy.capture.freeze.chunk import Chunk
from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.linux.mappings import PAGE, Mapping

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
# struct elf_prstatus: siginfo, cursig, sigpend, sighold, pid, ppid, pgrp, sid, four timevals, then registers, fpvalid.
PRSTATUS_HEAD = struct.Struct("<12xH2xQQiiii64x")
PRSTATUS_TAIL = struct.Struct("<i4x")
# struct elf_prpsinfo: state, sname, zomb, nice, flag, uid, gid, pid, ppid, pgrp, sid, fname, psargs.
PRPSINFO = struct.Struct("<bcbb4xQIIiiii16s80s")

ET_CORE, EM_X86_64 = 4, 62
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
PN_XNUM = 0xFFFF
GAP_PAGES = 4  # absent pages of anonymous memory, which read as zeros, that are cheaper as a hole than as a segment
STEP_BYTES = 4 << 20
ZERO = bytes(PAGE)


@dataclass(frozen=True, slots=True)
class ThreadRegisters:
    """One thread's registers, as struct user_regs_struct."""

    tid: int
    registers: bytes


@dataclass(frozen=True, slots=True)
class Notes:
    """What the core tells beside memory. The first of `threads` is the one that a debugger shows first."""

    pid: int
    comm: bytes
    arguments: bytes
    auxv: bytes
    threads: tuple[ThreadRegisters, ...]
    files: tuple[Mapping, ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    """One PT_LOAD. `stored` is empty where nothing of it is kept."""

    start: int
    end: int
    flags: int
    stored: tuple[Chunk, ...]

    @property
    def file_size(self) -> int:
        return self.end - self.start if self.stored else 0


def _keep(_address: int, _size: int) -> None:
    """Do nothing about what was written."""


def write(
    place: Path | int,
    notes: Notes,
    mappings: Sequence[Mapping],
    chunks: Iterable[Chunk],
    *,
    fill: bool,
    written: Callable[[int, int], None] = _keep,
) -> int:
    """Write a core of whole pages and return its length in bytes; pages of zeros become holes.

    It goes to a new file, or into an empty one that is open (a descriptor).
    `fill` lets small gaps of anonymous memory become zeros. It must not be set where an absent page means something
    else, as in a core that is read over another.
    `written` is told of each part that is in the file, by its address and size: nobody needs it elsewhere any more.
    Headers come first and data in order, so that a file that was cut short by our death is cut, and not wrong.

    Raises:
        OSError: it cannot be written whole; what there is of it is taken away again.
    """
    segments = list(_segments(mappings, sorted(chunks, key=lambda chunk: chunk.address), GAP_PAGES if fill else 0))
    with _opened(place) as descriptor:
        return _write(descriptor, _render_notes(notes), segments, written)


@contextmanager
def _opened(place: Path | int) -> Iterator[int]:
    if isinstance(place, int):
        try:
            yield place
        except OSError:
            os.ftruncate(place, 0)
            raise
        return
    with private.held(place.parent) as folder, private.new(place.name, below=folder) as stream:
        try:
            yield stream.fileno()
        except OSError:
            os.unlink(place.name, dir_fd=folder)
            raise


def _write(descriptor: int, notes: bytes, segments: list[_Segment], written: Callable[[int, int], None]) -> int:
    count = len(segments) + 1
    extended = count >= PN_XNUM
    notes_at = EHDR.size + PHDR.size * count + (SHDR.size if extended else 0)
    data_at = _page_up(notes_at + len(notes))
    header = EHDR.pack(
        b"\x7fELF\x02\x01\x01",
        ET_CORE,
        EM_X86_64,
        1,
        0,
        EHDR.size,
        EHDR.size + PHDR.size * count if extended else 0,
        0,
        EHDR.size,
        PHDR.size,
        PN_XNUM if extended else count,
        SHDR.size if extended else 0,
        1 if extended else 0,
        0,
    )
    table = [PHDR.pack(PT_NOTE, 4, notes_at, 0, 0, len(notes), 0, 4)]
    position = data_at
    for segment in segments:
        table.append(
            PHDR.pack(
                PT_LOAD, segment.flags, position, segment.start, 0, segment.file_size, segment.end - segment.start, PAGE
            )
        )
        position += segment.file_size
    # The count that e_phnum cannot hold stands in sh_info of section 0 (elf(5), PN_XNUM).
    section = SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0) if extended else b""
    _write_all(descriptor, memoryview(header + b"".join(table) + section + notes), 0)
    place = data_at
    for segment in segments:
        for chunk in segment.stored:
            for step in range(0, len(chunk.data), STEP_BYTES):
                part = chunk.data[step : step + STEP_BYTES]
                _write_sparse(descriptor, part, place + chunk.address + step - segment.start)
                written(chunk.address + step, len(part))
        place += segment.file_size
    os.ftruncate(descriptor, position)  # the last page may be a hole
    return position


def _write_sparse(descriptor: int, data: memoryview, position: int) -> None:
    """Write the runs of pages that hold anything."""
    begun = 0
    in_run = False
    for page in range(0, len(data), PAGE):
        if data[page : page + PAGE].tobytes() == ZERO:  # comparing views goes byte by byte
            if in_run:
                _write_all(descriptor, data[begun:page], position + begun)
                in_run = False
        elif not in_run:
            begun = page
            in_run = True
    if in_run:
        _write_all(descriptor, data[begun:], position + begun)


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data = data[written:]
        position += written


def _segments(mappings: Sequence[Mapping], chunks: list[Chunk], gap: int) -> Iterator[_Segment]:
    """Yield segments in order of address that cover every mapping, and what was copied of it."""
    index = 0
    for mapping in mappings:
        if mapping.path == "[vsyscall]":  # not the process's, and above what a debugger takes for an address of one
            continue
        first = index
        while index < len(chunks) and chunks[index].address < mapping.start:
            index += 1
        yield from map(_unmapped, chunks[first:index])
        first = index
        while index < len(chunks) and chunks[index].address < mapping.end:
            index += 1
        yield from _of_mapping(mapping, chunks[first:index], gap if mapping.anonymous else 0)
    yield from map(_unmapped, chunks[index:])


def _unmapped(chunk: Chunk) -> _Segment:
    """Return a segment for what was mapped after the maps were read: the stack of a new thread."""
    return _Segment(chunk.address, chunk.end, 6, (chunk,))


def _of_mapping(mapping: Mapping, chunks: list[Chunk], gap: int) -> Iterator[_Segment]:
    flags = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in mapping.permissions)
    position = mapping.start
    index = 0
    while index < len(chunks):
        first = index
        index += 1
        while index < len(chunks) and chunks[index].address - chunks[index - 1].end <= gap * PAGE:
            index += 1
        stored = tuple(chunks[first:index])
        if stored[0].address > position:
            yield _Segment(position, stored[0].address, flags, ())
        position = stored[-1].end
        yield _Segment(stored[0].address, position, flags, stored)
    if position < mapping.end:
        yield _Segment(position, mapping.end, flags, ())


def _render_notes(notes: Notes) -> bytes:
    parts: list[bytes] = []
    for thread in notes.threads:
        head = PRSTATUS_HEAD.pack(0, 0, 0, thread.tid, 0, notes.pid, notes.pid)
        parts.append(_note(NT_PRSTATUS, head + thread.registers + PRSTATUS_TAIL.pack(0)))
        if len(parts) == 1:  # the kernel's order: the first thread, then what is the process's own
            parts += [
                _note(
                    NT_PRPSINFO,
                    PRPSINFO.pack(
                        0,
                        b"S",
                        0,
                        0,
                        0,
                        0,
                        0,
                        notes.pid,
                        0,
                        notes.pid,
                        notes.pid,
                        notes.comm[:15],
                        notes.arguments[:79],
                    ),
                ),
                _note(NT_AUXV, notes.auxv),
                _note(NT_FILE, _render_files(notes.files)),
            ]
    return b"".join(parts)


def _note(kind: int, body: bytes) -> bytes:
    return struct.pack("<III", 5, len(body), kind) + b"CORE\0\0\0\0" + body + bytes(-len(body) % 4)


def _render_files(files: tuple[Mapping, ...]) -> bytes:
    ranges = b"".join(struct.pack("<QQQ", file.start, file.end, file.offset // PAGE) for file in files)
    paths = b"".join(file.file.encode("utf-8", "surrogateescape") + b"\0" for file in files)
    return struct.pack("<QQ", len(files), PAGE) + ranges + paths


def _page_up(size: int) -> int:
    return (size + PAGE - 1) & -PAGE
