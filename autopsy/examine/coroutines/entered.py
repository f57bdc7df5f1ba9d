"""Find where each thread left its own stack for the coroutine that it is in.

Such a thread's stack ends at coroutine_trampoline(). What it did before, a drain, a command, a guest's register write,
is in the context that qemu_coroutine_enter() saved: of the coroutine that entered this one, or of the thread's leader.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from autopsy.examine.core.reader import Core, Registers
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines.find import Saved, context_of

MOST_NESTED = 64  # coroutines that enter coroutines; QEMU's nest a few deep


def chains(core: Core, saved: Sequence[Saved]) -> dict[int, tuple[Saved, ...]]:
    """Return, for each thread that is in a coroutine, that coroutine, the one that entered it, and so on."""
    by_address = {record.coroutine.address: record for record in saved}
    running = sorted((record for record in saved if record.coroutine.state == "running"), key=_stack)
    by_tid: dict[int, tuple[Saved, ...]] = {}
    for thread in core.threads:
        index = bisect_right(running, thread.registers.rsp, key=_stack) - 1
        inner = running[index] if index >= 0 and thread.registers.rsp < running[index].top else None
        chain: dict[int, Saved] = {}
        while inner is not None and inner.coroutine.address not in chain and len(chain) < MOST_NESTED:
            chain[inner.coroutine.address] = inner
            inner = by_address.get(inner.coroutine.caller)  # a leader has no such stack
        if chain:
            by_tid[thread.tid] = tuple(chain.values())
    return by_tid


def contexts(core: Core, symbols: Symbols, saved: Sequence[Saved]) -> dict[int, tuple[Registers, ...]]:
    """Return, for each thread that is in a coroutine, the registers of what it came through, innermost first."""
    by_tid: dict[int, tuple[Registers, ...]] = {}
    for tid, chain in chains(core, saved).items():
        leader = context_of(core, symbols, chain[-1].coroutine.caller)
        by_tid[tid] = (*(outer.registers for outer in chain[1:]), *((leader,) if leader else ()))
    return by_tid


def _stack(saved: Saved) -> int:
    return saved.coroutine.stack
