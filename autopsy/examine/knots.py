"""Tie coroutines and threads into one graph of who waits for whom, and find its cycles."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import msgspec

from autopsy.bundle.records import Entered, LockGraph
from autopsy.examine import comutexes
from autopsy.examine.core import Core
from autopsy.examine.coroutines import Saved
from autopsy.examine.symbols import Symbols


def with_coroutines(graph: LockGraph, core: Core, symbols: Symbols, saved: Sequence[Saved]) -> LockGraph:
    """Return the graph with what coroutines wait for: one another, and the threads that they run on."""
    held = comutexes.find(core, symbols, saved)
    return msgspec.structs.replace(
        graph,
        comutexes=held,
        entered=entered(core, saved),
        knots=cycles({waiter: mutex.holder for mutex in held for waiter in mutex.waiters if mutex.holder}),
    )


def entered(core: Core, saved: Sequence[Saved]) -> tuple[Entered, ...]:
    """Return which thread each running coroutine is on: by the stack in use, and by who entered whom."""
    by_address = {each.coroutine.address: each for each in saved}
    running = sorted((each for each in saved if each.coroutine.state == "running"), key=_stack)
    found: dict[int, int] = {}
    for thread in core.threads:
        index = bisect_right(running, thread.registers.rsp, key=_stack) - 1
        inner = running[index] if index >= 0 and thread.registers.rsp < running[index].top else None
        while inner is not None and inner.coroutine.address not in found:
            found[inner.coroutine.address] = thread.tid
            inner = by_address.get(inner.coroutine.caller)  # the first was entered by a thread's own leader: no stack
    return tuple(Entered(coroutine=address, tid=tid) for address, tid in sorted(found.items()))


def _stack(saved: Saved) -> int:
    return saved.coroutine.stack


def cycles(waits_for: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Return every cycle of a graph in which each waits for at most one, from its smallest tid."""
    found: list[tuple[int, ...]] = []
    done: set[int] = set()
    for start in sorted(waits_for):
        path: dict[int, int] = {}
        tid = start
        while tid in waits_for and tid not in path and tid not in done:
            path[tid] = len(path)
            tid = waits_for[tid]
        if tid in path:
            ring = list(path)[path[tid] :]
            smallest = ring.index(min(ring))
            found.append(tuple(ring[smallest:] + ring[:smallest]))
        done |= path.keys()
    return tuple(sorted(found))
