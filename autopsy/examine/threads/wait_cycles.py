"""Tie coroutines and threads into one graph of who waits for whom, and find its cycles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from autopsy.bundle.records import Entered, LeftOut, LockGraph
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import mutexes
from autopsy.examine.coroutines.entered import chains
from autopsy.examine.coroutines.find import Saved


def with_coroutines(
    graph: LockGraph, core: Core, symbols: Symbols, saved: Sequence[Saved], left_out: list[LeftOut]
) -> LockGraph:
    """Return the graph with what coroutines wait for: one another, and the threads that they run on.

    What a limit kept from being looked at is added to `left_out`.
    """
    held = mutexes.find_mutexes(core, symbols, saved, left_out)
    return msgspec.structs.replace(
        graph,
        comutexes=held,
        entered=entered(core, saved),
        knots=cycles({waiter: mutex.holder for mutex in held for waiter in mutex.waiters if mutex.holder}),
    )


def entered(core: Core, saved: Sequence[Saved]) -> tuple[Entered, ...]:
    """Return which thread each running coroutine is on: by the stack in use, and by who entered whom."""
    tids = {record.coroutine.address: tid for tid, chain in chains(core, saved).items() for record in chain}
    return tuple(Entered(coroutine=address, tid=tid) for address, tid in sorted(tids.items()))


def cycles(waits_for: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Return every cycle of a graph in which each waits for at most one, from its smallest tid."""
    rings: list[tuple[int, ...]] = []
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
            rings.append(tuple(ring[smallest:] + ring[:smallest]))
        done |= path.keys()
    return tuple(sorted(rings))
