"""Find the coroutine mutexes that parked coroutines wait for, and their holders, without symbols.

A coroutine that waits in qemu_co_mutex_lock() has a record of its own on its stack, {coroutine, next record}, in one of
the mutex's two lists; and it still holds the mutex's address, to make itself the holder when it is woken. So whatever
a parked coroutine points at is a CoMutex if its lists lead back to that coroutine.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from autopsy.bundle.records import CoMutex, Coroutine, LeftOut
from autopsy.examine.core.reader import PAGE, Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines.find import Saved

# struct CoMutex: locked, ctx, from_push, to_pop, handoff, sequence, holder; the same since QEMU 2.9.
MUTEX = struct.Struct("<I4xQQQIIQ")
RECORD = struct.Struct("<QQ")
DEEPEST = 0x400  # qemu_coroutine_switch, _yield, qemu_co_mutex_lock and its slow path use some 0x150 bytes
MOST_WAITERS = 65536
MOST_STEPS = 4 << 20  # along all lists: a coroutine is in one of them
MOST_TRIED = 1 << 20  # a coroutine points at some ten places


class _Stacks:
    """The parked coroutines by the stacks that they are on; `steps_left` bounds the walks along their records."""

    def __init__(self, coroutines: Iterable[Coroutine]) -> None:
        parked = sorted(
            (coroutine for coroutine in coroutines if coroutine.state == "parked"),
            key=lambda coroutine: coroutine.stack,
        )
        self._starts = [coroutine.stack for coroutine in parked]
        self._parked = parked
        self.steps_left = MOST_STEPS

    def owner(self, address: int) -> Coroutine | None:
        """Return the coroutine on whose used stack the address lies."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        coroutine = self._parked[index]
        return coroutine if coroutine.sp <= address < coroutine.stack + coroutine.stack_size else None


def find_mutexes(core: Core, symbols: Symbols, saved: Sequence[Saved], left_out: list[LeftOut]) -> tuple[CoMutex, ...]:
    """Return every CoMutex that a parked coroutine waits for, by address."""
    stacks = _Stacks(owner.coroutine for owner in saved)
    known = {owner.coroutine.address for owner in saved}
    tried: dict[int, CoMutex | None] = {}
    for waiter in saved:
        if waiter.coroutine.state != "parked":
            continue
        for pointer in _pointers(core, waiter):
            if pointer in tried:
                continue
            if len(tried) == MOST_TRIED or stacks.steps_left < 0:
                why = f"{MOST_TRIED} places and {MOST_STEPS} waiters were looked at"
                left_out.append(LeftOut(what="there may be more coroutine mutexes than are told", why=why))
                return _by_address(tried)
            tried[pointer] = _mutex(core, symbols, pointer, stacks, known)
    return _by_address(tried)


def _by_address(tried: Mapping[int, CoMutex | None]) -> tuple[CoMutex, ...]:
    return tuple(mutex for _, mutex in sorted(tried.items()) if mutex is not None)


def _pointers(core: Core, saved: Saved) -> Iterator[int]:
    """Yield what its registers and its innermost frames hold that may be a mutex's address: not its own stack's."""
    registers = saved.registers
    words = {registers.rbx, registers.rbp, registers.r12, registers.r13, registers.r14, registers.r15}
    start = saved.coroutine.sp & -8
    with_stack = min(DEEPEST, saved.top - start)
    with suppress(CoreError):
        words.update(memoryview(core.read(start, with_stack)).cast("Q"))
    for word in words:
        if word > PAGE and not word % 8 and not saved.coroutine.stack <= word < saved.top:
            yield word


def _mutex(core: Core, symbols: Symbols, address: int, stacks: _Stacks, known: set[int]) -> CoMutex | None:
    try:
        locked, _, from_push, to_pop, _, _, holder = MUTEX.unpack(core.read(address, MUTEX.size))
    except CoreError:
        return None
    if not 0 < locked <= MOST_WAITERS or (holder and holder not in known) or not (from_push or to_pop):
        return None
    newest, oldest = _waiters(core, from_push, stacks), _waiters(core, to_pop, stacks)
    if newest is None or oldest is None or not 0 < len(newest) + len(oldest) <= locked:
        return None
    return CoMutex(
        address=address,
        locked=locked,
        holder=holder,
        waiters=(*oldest, *reversed(newest)),
        place=symbols.place(address) or "heap",
    )


def _waiters(core: Core, record: int, stacks: _Stacks) -> list[int] | None:
    """Return the coroutines of a list of wait records, None if it is no such list."""
    waiters: list[int] = []
    while record:
        owner = stacks.owner(record)
        try:
            coroutine, record = RECORD.unpack(core.read(record, RECORD.size))
        except CoreError:
            return None
        stacks.steps_left -= 1
        if owner is None or owner.address != coroutine or len(waiters) >= MOST_WAITERS or stacks.steps_left < 0:
            return None
        waiters.append(coroutine)
    return waiters
