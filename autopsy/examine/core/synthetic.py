"""Write a core in which whatever we want unwound is a thread."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from autopsy.examine.core.extent import WINDOW, CoreExtent
from autopsy.examine.core.reader import (
    EHDR,
    ESCAPED_COUNT,
    MACHINE_X86_64,
    PHDR,
    REGISTERS,
    SHDR,
    CoreThread,
)

NT_PRSTATUS = 1
PT_LOAD = 1
PT_NOTE = 4
PRSTATUS = struct.Struct("<32xI76x216s8x")


def write(path: Path, threads: Iterable[CoreThread], extents: list[CoreExtent], notes: list[tuple[int, bytes]]) -> None:
    """Write an ELF core of these threads and this memory; `notes` are further (type, descriptor) pairs.

    The first thread is the one that gdb selects. The file is removed with the scratch directory.
    """
    packed = [_note(NT_PRSTATUS, PRSTATUS.pack(thread.tid, REGISTERS.pack(*thread.registers))) for thread in threads]
    packed[1:1] = [_note(kind, body) for kind, body in notes]
    body = b"".join(packed)
    count = len(extents) + 1
    escaped = count >= ESCAPED_COUNT
    section_at = EHDR.size + PHDR.size * count if escaped else 0
    notes_at = EHDR.size + PHDR.size * count + (SHDR.size if escaped else 0)
    headers = [PHDR.pack(PT_NOTE, 4, notes_at, 0, 0, len(body), 0, 4)]
    position = notes_at + len(body)
    for extent in extents:
        size = extent.end - extent.start
        headers.append(PHDR.pack(PT_LOAD, 6, position, extent.start, 0, size, size, 1))
        position += size
    start = EHDR.pack(
        b"\x7fELF\x02\x01\x01" + b"\0" * 9,
        *(4, MACHINE_X86_64, 1, 0, EHDR.size, section_at, 0, EHDR.size, PHDR.size),
        *(ESCAPED_COUNT if escaped else count, SHDR.size if escaped else 0, 1 if escaped else 0, 0),
    )
    with open(path, "xb") as stream:
        stream.write(start + b"".join(headers))
        if escaped:
            stream.write(SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
        stream.write(body)
        for extent in extents:
            last = extent.offset + extent.end - extent.start
            for part in range(extent.offset, last, WINDOW):
                with memoryview(extent.source) as view:
                    stream.write(view[part : min(last, part + WINDOW)])
                extent.let_go(part, min(last, part + WINDOW))


def _note(kind: int, body: bytes) -> bytes:
    return struct.pack("<III", 5, len(body), kind) + b"CORE\0\0\0\0" + body + b"\0" * (-len(body) % 4)
