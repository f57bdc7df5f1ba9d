"""How many coroutines of a running QEMU are under way, by one word of each one's stack: no heap is read, none stopped.

coroutine_trampoline() calls the coroutine's entry through a pointer, and when that has returned,
qemu_coroutine_switch() by its address, to wait in the pool. Either leaves its return address at the very top of the
stack, and the instruction before that address tells which of the two calls it was.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from itertools import pairwise

from autopsy.capture.files import read_kernel

MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) (\S+) (\d+) *(.*)$", re.MULTILINE)
MOST_MAPS = 32 << 20
STACK = 1 << 20  # COROUTINE_STACK_SIZE, above its guard page
TOP = 0x100  # bytes below a stack's top in which the trampoline keeps its return address
PAGE = 4096
PRESENT = 1 << 63
CALL_BYTES = 7
DIRECT_CALL = 0xE8
INDIRECT_CALL = 0xFF
CALL_BY_MODRM = 0x10  # in bits 3 to 5 of the byte after 0xFF
WORDS = struct.Struct(f"<{TOP // 8}Q")


class Unclear(Exception):
    """What lies in memory is not what this module knows."""


def count(pid: int) -> bytes:
    """Return, in digits, how many coroutines of QEMU are under way, but for the monitor's dispatcher, which always is.

    They are block requests in flight, throttled ones too, and block jobs. Call it in a child: it takes the lock of the
    process's memory map, which can be held for ever. A page that is not in memory is left alone.

    Raises:
        OSError: the process is gone, or not ours to look at.
        Unclear: this QEMU's coroutines are made in another way.
    """
    maps = [
        (int(start, 16), int(end, 16), mode, (device, inode, path))
        for start, end, mode, _, device, inode, path in MAPPING.findall(read_kernel(f"/proc/{pid}/maps", MOST_MAPS))
    ]
    exe = os.readlink(f"/proc/{pid}/exe").encode()
    code = [(start, end) for start, end, mode, file in maps if b"x" in mode and file[2] == exe]
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _count(_Memory(memory, pagemap), list(_stacks(maps)), code)
        finally:
            os.close(pagemap)
    finally:
        os.close(memory)


class _Memory:
    """What of a process's memory can be read without a fault: a page that was swapped out may be on a stuck disk."""

    def __init__(self, memory: int, pagemap: int) -> None:
        self._memory = memory
        self._pagemap = pagemap

    def read(self, address: int, size: int) -> bytes:
        for page in range(address // PAGE, (address + size - 1) // PAGE + 1):
            entry = os.pread(self._pagemap, 8, page * 8)
            if len(entry) < 8 or not int.from_bytes(entry, "little") & PRESENT:
                return b""
        try:
            return os.pread(self._memory, size, address)
        except OSError:
            return b""


def _stacks(maps: list[tuple[int, int, bytes, tuple[bytes, bytes, bytes]]]) -> Iterator[int]:
    """Yield the top of all that may be a coroutine's stack: memory of no file, right above what nobody may touch."""
    for (_, guard_end, guard_mode, _), (start, end, mode, (_, inode, path)) in pairwise(maps):
        anonymous = mode == b"rw-p" and inode == b"0" and not path
        if guard_end == start and guard_mode.startswith(b"---") and anonymous and end - start >= STACK:
            yield start + STACK


def _count(memory: _Memory, tops: list[int], code: list[tuple[int, int]]) -> bytes:
    inside: dict[int, bool | None] = {}
    found = 0
    known = 0
    for top in tops:
        data = memory.read(top - TOP, TOP)
        words = WORDS.unpack(data) if len(data) == TOP else ()
        back = next((word for word in reversed(words) if any(start < word < end for start, end in code)), 0)
        if not back:
            continue  # a thread's stack, or another's memory
        if back not in inside:
            inside[back] = calls_by_pointer(memory.read(back - CALL_BYTES, CALL_BYTES))
        if inside[back] is not None:
            known += 1
            found += bool(inside[back])
    if not found:
        raise Unclear(f"of {known} coroutines none is the monitor's")
    return str(found - 1).encode()


def calls_by_pointer(code: bytes) -> bool | None:
    """Tell whether the call that ends here goes through a pointer; None where it is no call, or could be either."""
    if len(code) < CALL_BYTES:
        return None
    direct = code[-5] == DIRECT_CALL
    # The pointer lies in a register, or in memory with no, a short or a long displacement.
    lengths = ((2, (0x00, 0xC0)), (3, (0x40,)), (6, (0x80,)))
    indirect = any(
        code[-length] == INDIRECT_CALL and code[1 - length] & 0x38 == CALL_BY_MODRM and code[1 - length] & 0xC0 in modes
        for length, modes in lengths
    )
    return None if direct == indirect else indirect
