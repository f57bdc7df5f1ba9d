"""Edges of requests that stand behind others: behind an overlapping one, a flush, a lock of their image's, a drain."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.limits.at_limits import copies_held
from autopsy.diagnose.queries.requests import disks_of, last_driver
from autopsy.diagnose.waits.requests import standing
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoMutexFact, CoroutineFact, Facts, Park
from autopsy.facts.model.yield_points import BEHIND, DISK_PARKS

# Others may stand behind what waits at a place that this analyzer cannot tell.
UNTOLD = frozenset({Park.PVE_BACKUP, Park.SLEEP, Park.OTHER})
LEAVES = (DISK_PARKS - BEHIND) | UNTOLD
DRAINS = frozenset({Park.DRAINED, Park.GRAPH_LOCK, Park.YIELD_TO_DRAIN})
OF_A_COPY = frozenset({Park.COPY_BEFORE_WRITE, Park.COPY_MEMORY, Park.MIRROR})
MOST = 64  # each waits for one; which of many it is, the place does not tell


def behind_waits(facts: Facts) -> Iterator[Wait]:
    """Yield who stands behind whom: by the heap where it tells, else behind those of the same disk that stand."""
    held = {waiter for mutex in _comutexes(facts) for waiter in mutex.waiters}
    nameless: list[CoroutineFact] = []
    leaves: list[CoroutineFact] = []
    for leaf in standing(facts, LEAVES):
        (nameless if _is_nameless(facts, leaf) else leaves).append(leaf)
    free = [leaf for leaf in leaves if leaf.address not in held]  # whoever waits for a lock may wait for the nameless
    by_heap, at_limit = _told_by_heap(facts), bool(copies_held(facts))
    awaited: set[subjects.Subject] = set()
    seen: set[subjects.Place] = set()
    for request in (*standing(facts, BEHIND), *nameless):
        waiter = subjects.Request(request.address)
        if request.address in held or (request.of_job and at_limit):
            continue  # whose lock it is, is known; a job that only a limit holds back is slow
        before: tuple[subjects.Subject, ...] = (
            _drainers(facts)
            if request.park in DRAINS
            else (subjects.Request(by_heap[request.address]),)
            if request.address in by_heap
            else tuple(
                subjects.Request(leaf.address)
                for leaf in (free if request.park is Park.DRIVER else leaves)
                if _may_hold(facts, leaf, request)
            )[:MOST]
        )
        place = subjects.Place(request.park, frozenset(before))
        yield Wait(waiter, place, How.PARKED_AT, _sure(request), (request.cite,))
        if place not in seen:
            seen.add(place)
            awaited.update(before)
            for holder in before:
                yield Wait(place, holder, How.BEHIND, Certainty.ONCE, (request.cite,))
    for leaf in leaves:
        if leaf.park in UNTOLD and (waiter := subjects.Request(leaf.address)) in awaited:
            yield Wait(waiter, subjects.Place(leaf.park), How.PARKED_AT, _sure(leaf), (leaf.cite,))


def _is_nameless(facts: Facts, request: CoroutineFact) -> bool:
    """Tell whether a request stands in a driver that this build gives no name, and that may ask others for its work."""
    return request.park is Park.DRIVER and last_driver(facts, request) is None


def _comutexes(facts: Facts) -> tuple[CoMutexFact, ...]:
    return facts.locks.value.comutexes if isinstance(facts.locks, Known) else ()


def _sure(request: CoroutineFact) -> Certainty:
    return Certainty.SEEN if isinstance(request.stuck, Known) and request.stuck.value else Certainty.ONCE


def _drainers(facts: Facts) -> tuple[subjects.Subject, ...]:
    """Return the main thread where it drains: what it drains for goes on when that has ended."""
    loop = facts.main_loop
    return (subjects.Thread(loop.value.tid),) if isinstance(loop, Known) and loop.value.state == "nested poll" else ()


def _may_hold(facts: Facts, leaf: CoroutineFact, request: CoroutineFact) -> bool:
    """Tell whether one request can be what another stands behind: of the same disk, as far as that is known."""
    if request.park in OF_A_COPY or leaf.of_job or request.of_job:
        return True
    one, other = ({disk.name for disk in disks_of(facts, coroutine)} for coroutine in (leaf, request))
    return not one or not other or bool(one & other)


def _told_by_heap(facts: Facts) -> dict[int, int]:
    """Map coroutines to the one whose tracked request theirs waits for."""
    if not isinstance(facts.heap, Known):
        return {}
    tracked = {request.address: request for node in facts.heap.value.nodes for request in node.requests}
    return {
        request.coroutine: tracked[request.waiting_for].coroutine
        for request in tracked.values()
        if request.waiting_for in tracked
    }
