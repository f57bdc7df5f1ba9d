"""Which coroutines of a running QEMU are under way, by one word of each one's stack: no heap is read, none stopped.

coroutine_trampoline() calls the coroutine's entry through a pointer, and when that has returned,
qemu_coroutine_switch() by its address, to wait in the pool. Either leaves its return address at the very top of the
stack, and the instruction before that address tells which of the two calls it was.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from itertools import pairwise

from autopsy.linux.files import read_kernel
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping, parse_maps
from autopsy.linux.tasks.present_memory import opened_memory, read_present
from autopsy.linux.tasks.priority import Unpreempted
from autopsy.target.guest_ram import guest_ram
from autopsy.target.image import image_of

MOST_MAPS = 32 << 20
STACK = 1 << 20  # COROUTINE_STACK_SIZE, above its guard page
TOP = 0x100  # bytes below a stack's top in which the trampoline keeps its return address
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
    return str(len(_busy(pid)) - 1).encode()


def stacks(pid: int) -> bytes:
    """Return what tells the coroutines under way apart from one look to the next: a line each, address and digest.

    A coroutine that has run meanwhile has other words on its stack. The monitor's dispatcher is among them. Call it in
    a child, as `count`, and it raises as that does.
    """
    return b"".join(b"%x %s\n" % (top, digest) for top, digest in _busy(pid, digests=True))


def _busy(pid: int, *, digests: bool = False) -> list[tuple[int, bytes]]:
    mappings = parse_maps(read_kernel(f"/proc/{pid}/maps", MOST_MAPS))
    exe = image_of(pid).link
    code = [mapping for mapping in mappings if "x" in mapping.permissions and mapping.path == exe]
    with opened_memory(pid, f"/proc/{pid}") as process, Unpreempted() as ahead:
        under_way = _under_way(process, list(stack_tops(mappings)), code, ahead)
        return [(top, _digest(process, top) if digests else b"") for top in under_way]


def stack_tops(mappings: tuple[Mapping, ...]) -> Iterator[int]:
    """Yield the top of all that may be a coroutine's stack: memory of no file, right above what nobody may touch."""
    ram = guest_ram(mappings)
    for guard, above in pairwise(mappings):
        own = above.permissions == "rw-p" and above.anonymous and not above.path
        lies_above = guard.end == above.start and guard.permissions.startswith("---")
        if lies_above and own and above.size >= STACK and above.start not in ram:
            yield above.start + STACK


def _digest(process: MappedProcess, top: int) -> bytes:
    return hashlib.blake2b(read_present(process, top - PAGE, PAGE), digest_size=16).hexdigest().encode()


def _under_way(process: MappedProcess, tops: list[int], code: list[Mapping], ahead: Unpreempted) -> list[int]:
    inside: dict[int, bool | None] = {}
    busy: list[int] = []
    known = 0
    for top in tops:
        ahead.breathe()
        data = read_present(process, top - TOP, TOP)
        words = WORDS.unpack(data) if len(data) == TOP else ()
        back = next((word for word in reversed(words) if any(part.start < word < part.end for part in code)), 0)
        if not back:
            continue  # a thread's stack, or another's memory
        if back not in inside:
            inside[back] = calls_by_pointer(read_present(process, back - CALL_BYTES, CALL_BYTES))
        if inside[back] is not None:
            known += 1
            if inside[back]:
                busy.append(top)
    if not busy:
        raise Unclear(f"of {known} coroutines none is the monitor's")
    return busy


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
