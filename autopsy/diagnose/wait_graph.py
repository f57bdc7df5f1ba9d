"""Who waits for whom, drawn from the locks, the main loop and the parked requests."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import WaitEdge, WaitGraph, WaitNode
from autopsy.diagnose.queries import coroutine_mutexes, kernel_stacks
from autopsy.diagnose.queries.kernel_sleepers import sleepers
from autopsy.diagnose.queries.requests import counted, disk_names, their_disks
from autopsy.diagnose.queries.threads import looks, named, threads
from autopsy.diagnose.waits import drawn, drawn_frames
from autopsy.diagnose.waits.graph import Graph
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoMutexFact, CoroutineFact, Facts, Park
from autopsy.facts.model.yield_points import DISK_PARKS, SERVED

MOST = 60
DRAWN = DISK_PARKS | {Park.CO_MUTEX}


def draw(facts: Facts, graph: Graph) -> WaitGraph:
    """Return the graph without the idle: identical parked requests are one node with their count."""
    nodes: dict[str, WaitNode] = {}
    edges: list[WaitEdge] = []
    _locks(facts, nodes, edges)
    _kernel(facts, nodes, edges)
    _requests(facts, nodes, edges)
    _comutexes(facts, nodes, edges)
    drawn.add(facts, graph, nodes, edges)
    drawn_frames.add(facts, graph, nodes, edges)
    drawn.mark_ends(nodes, edges)
    return WaitGraph(nodes=tuple(nodes.values())[:MOST], edges=tuple(edges)[: 2 * MOST])


def _thread(facts: Facts, tid: int, nodes: dict[str, WaitNode]) -> str:
    identity = f"thread {tid}"
    if identity not in nodes:
        found = next((each for each in threads(facts) if each.tid == tid), None)
        cites = tuple(look.cite for look in looks(found)[:1]) if found else ()
        nodes[identity] = WaitNode(id=identity, kind="thread", label=named(found) if found else identity, cites=cites)
    return identity


def _locks(facts: Facts, nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    if not isinstance(facts.locks, Known):
        return
    rings = [set(ring) for ring in facts.locks.value.cycles]
    for mutex in facts.locks.value.mutexes:
        lock = f"mutex {mutex.address:#x}"
        label = mutex.in_object or mutex.name or "a mutex"
        nodes[lock] = WaitNode(id=lock, kind="lock", label=label, detail=f"{mutex.address:#x}", cites=(mutex.cite,))
        for tid in mutex.waiters:
            circular = any({tid, mutex.owner} <= ring for ring in rings)
            edges.append(WaitEdge(waiter=_thread(facts, tid, nodes), holder=lock, label="waits for", in_cycle=circular))
        if mutex.owner:
            circular = any(mutex.owner in ring and ring & set(mutex.waiters) for ring in rings)
            edges.append(
                WaitEdge(waiter=lock, holder=_thread(facts, mutex.owner, nodes), label="held by", in_cycle=circular)
            )


def _kernel(facts: Facts, nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    for each in sleepers(facts):
        resource = f"kernel {each.family.id}"
        place = kernel_stacks.deepest(each.look, each.family)
        nodes.setdefault(
            resource,
            WaitNode(
                id=resource, kind="resource", label=each.family.words, detail=place, cites=(each.look.stack_cite,)
            ),
        )
        edges.append(WaitEdge(waiter=_thread(facts, each.thread.tid, nodes), holder=resource, label="sleeps in"))


def _requests(facts: Facts, nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    if not isinstance(facts.coroutines, Known):
        return
    waiting: list[CoroutineFact] = [each for each in facts.coroutines.value if each.park in DRAWN]
    for park in dict.fromkeys(each.park for each in waiting):
        mine = [each for each in waiting if each.park is park]
        identity, resource = f"requests {park.name}", f"place {park.name}"
        disks = disk_names(their_disks(facts, mine)[:3])
        nodes[identity] = WaitNode(
            id=identity,
            kind="coroutine",
            label=counted(facts, tuple(mine)),
            detail=f"of {disks}" if disks else "",
            cites=tuple(each.cite for each in mine[:3]),
        )
        kind = "peer" if park in SERVED - {Park.BLKIO, Park.NVME} else "resource"
        nodes[resource] = WaitNode(id=resource, kind=kind, label=_what(park))  # type: ignore[arg-type]  # one of two words
        edges.append(WaitEdge(waiter=identity, holder=resource, label="parked"))


def _comutexes(facts: Facts, nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    """Draw the requests that wait for a coroutine mutex, and what holds it: other requests, or a thread."""
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    parks = {each.address: f"requests {each.park.name}" for each in parked}
    for mutex in coroutine_mutexes.of(facts):
        waiters = {parks[each] for each in mutex.waiters if parks.get(each) in nodes}
        if not mutex.in_knot:  # those that wait at one place are one node: an arrow back to it would say "deadlock"
            waiters.discard(parks.get(mutex.holder, ""))
        if not waiters:
            continue
        lock = f"comutex {mutex.address:#x}"
        nodes[lock] = WaitNode(
            id=lock, kind="lock", label="a coroutine mutex", detail=f"{mutex.address:#x}", cites=(mutex.cite,)
        )
        edges += [
            WaitEdge(waiter=each, holder=lock, label="waits for", in_cycle=mutex.in_knot) for each in sorted(waiters)
        ]
        if holder := _holder(facts, mutex, parks, nodes):
            edges.append(WaitEdge(waiter=lock, holder=holder, label="held by", in_cycle=mutex.in_knot))


def _holder(facts: Facts, mutex: CoMutexFact, parks: dict[int, str], nodes: dict[str, WaitNode]) -> str:
    if mutex.holder_tid:
        return _thread(facts, mutex.holder_tid, nodes)
    if parks.get(mutex.holder) in nodes:
        return parks[mutex.holder]
    if mutex.holder_state in coroutine_mutexes.ENDED:
        ended = f"coroutine {mutex.holder:#x}"
        nodes[ended] = WaitNode(id=ended, kind="coroutine", label="a coroutine that has ended", cites=(mutex.cite,))
        return ended
    return ""


def _what(park: Park) -> str:
    return park.words.removeprefix("waits for ").removeprefix("waits in ")
