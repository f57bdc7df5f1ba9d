"""Parked coroutines: where each waits, whether it moved, and whose request it carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from autopsy.bundle import layout, records
from autopsy.bundle.heap import records as heap_records
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import CoroutineFact, Park
from autopsy.facts.yield_points import is_timed, park_point, waits_a_time

LISTING = layout.evidence(layout.GDB_THREADS, layout.COROUTINES_TEXT)  # whose lines the records' `line` counts
HEAP = layout.evidence(layout.GDB_THREADS, layout.HEAP)


@dataclass(frozen=True, slots=True)
class _Owners:
    """The lowest node and the disk of each coroutine by its address, and what the second look says of it."""

    later: Fact[dict[int, records.Coroutine]]
    heap: Fact[heap_records.HeapSnapshot]
    nodes: Mapping[int, str]
    disks: Mapping[int, str]

    def fact(self, coroutine: records.Coroutine, cite: Cite) -> CoroutineFact:
        again = _same_request(coroutine, self.later)
        frames = again.frames if again is not None and len(again.frames) > len(coroutine.frames) else coroutine.frames
        park, named_by = park_point(frames)
        return CoroutineFact(
            address=coroutine.address,
            park=park,
            named_by=named_by,
            frames=frames,
            stuck=_stuck(coroutine, cite, self.later),
            context=coroutine.context,
            locks_held=coroutine.locks_held,
            scheduled_by=coroutine.scheduled_by,
            node=_by_address(self.nodes, coroutine.address, self.heap),
            disk=_by_address(self.disks, coroutine.address, self.heap),
            cite=cite,
            same_request=again is not None,
        )

    def awake_at_first(self, parked: Sequence[CoroutineFact]) -> Iterator[CoroutineFact]:
        """Yield who carries the same request at both looks, and was parked at the second one only."""
        if isinstance(self.later, Unknown):
            return
        known = {coroutine.address for coroutine in parked}
        for coroutine in self.later.value.values():
            if coroutine.state == "parked" and coroutine.same_request and coroutine.address not in known:
                yield self.fact(coroutine, Cite(self.later.cite.file, 0, f"coroutine {coroutine.address:#x}"))


def gather_coroutines(evidence: Evidence, heap: Fact[heap_records.HeapSnapshot]) -> Fact[tuple[CoroutineFact, ...]]:
    """Return every parked coroutine; `disk` is told where the heap shows whose request it is."""
    stored = decode(evidence, layout.GDB_THREADS, layout.COROUTINES, tuple[records.Coroutine, ...])
    if isinstance(stored, Unknown):
        return stored
    owners = _Owners(_later(evidence), heap, _nodes(heap), _disks(heap))
    facts = []
    for index, coroutine in enumerate(stored.value):
        if coroutine.state != "parked":
            continue
        words = f"coroutine {coroutine.address:#x}, number {index}"
        cite = Cite(LISTING, coroutine.line, words) if coroutine.line else Cite(stored.cite.file, 0, words)
        facts.append(owners.fact(coroutine, cite))
    return Known(_given_up((*facts, *owners.awake_at_first(facts))), stored.cite)


def _given_up(parked: tuple[CoroutineFact, ...]) -> tuple[CoroutineFact, ...]:
    """Return them with the places of those that were begun for somebody who waits for a time, and waits no more."""
    timed = {coroutine.address for coroutine in parked if is_timed(coroutine.frames)}
    if not timed or any(waits_a_time(coroutine.frames) for coroutine in parked):
        return parked  # for which of them, nobody can say
    return tuple(
        replace(coroutine, park=Park.GIVEN_UP) if coroutine.address in timed else coroutine for coroutine in parked
    )


def _later(evidence: Evidence) -> Fact[dict[int, records.Coroutine]]:
    """Return the coroutines of the second snapshot by address; they tell what became of those of the first."""
    stored = decode(evidence, layout.SECOND_EXPOSURE, layout.COROUTINES, tuple[records.Coroutine, ...])
    if isinstance(stored, Unknown):
        return stored
    return Known({coroutine.address: coroutine for coroutine in stored.value}, stored.cite)


def _stuck(coroutine: records.Coroutine, cite: Cite, later: Fact[dict[int, records.Coroutine]]) -> Fact[bool]:
    since_first = coroutine.since_first
    if since_first == "unknown":
        if isinstance(later, Unknown):
            return later
        other = later.value.get(coroutine.address)
        since_first = other.since_first if other is not None and other.state == "parked" else "gone"
        cite = Cite(later.cite.file, 0, f"coroutine {coroutine.address:#x}: {since_first}")
    match since_first:
        case "stuck":
            return Known(value=True, cite=cite)
        case "moved" | "gone" | "new":
            return Known(value=False, cite=cite)
        case "unknown":
            return Unknown(layout.evidence(layout.SECOND_EXPOSURE, layout.COROUTINES), "there was one snapshot only")


def _same_request(coroutine: records.Coroutine, later: Fact[dict[int, records.Coroutine]]) -> records.Coroutine | None:
    """Return what the second look says of one that moved, and carries the same request still."""
    other = later.value.get(coroutine.address) if isinstance(later, Known) else None
    return other if other is not None and other.state == "parked" and other.same_request else None


def _by_address(nodes: Mapping[int, str], address: int, heap: Fact[heap_records.HeapSnapshot]) -> Fact[str]:
    if address in nodes:
        return Known(nodes[address], Cite(HEAP, 0, f"coroutine {address:#x}"))
    if isinstance(heap, Unknown):
        return heap
    return Unknown(HEAP, "no tracked request or queue names this coroutine")


def _nodes(heap: Fact[heap_records.HeapSnapshot]) -> dict[int, str]:
    """Map each coroutine to the lowest block node that tracks its request: the last one it entered."""
    if isinstance(heap, Unknown):
        return {}
    nodes: dict[int, str] = {}
    parents = {edge.node_name for node in heap.value.nodes for edge in node.children}
    # A request is tracked by every node on its way down; children after parents, so that the lowest stays.
    for node in sorted(heap.value.nodes, key=lambda node: (node.node_name in parents, not node.children)):
        for request in node.requests:
            nodes[request.coroutine] = node.node_name
        for waiter in node.flush_waiters:
            nodes[waiter] = node.node_name
    for client in heap.value.nbd_clients:
        for slot in client.requests:
            nodes[slot.coroutine] = client.node_name
    return {coroutine: node for coroutine, node in nodes.items() if coroutine}


def _disks(heap: Fact[heap_records.HeapSnapshot]) -> dict[int, str]:
    """Map each coroutine to the backend (by name, device, or node) whose request it carries."""
    if isinstance(heap, Unknown):
        return {}
    disks: dict[int, str] = {}
    for backend in heap.value.backends:
        title = backend.name or backend.device or backend.node_name
        for coroutine in backend.queued_requests + _queued(heap.value, backend.address):
            disks[coroutine] = title
        for node in chain(heap.value, backend.node_name):
            for coroutine in _queued(heap.value, node.address) + _carried(heap.value, node):
                disks.setdefault(coroutine, title)
    return {coroutine: disk for coroutine, disk in disks.items() if coroutine}


def chain(snapshot: heap_records.HeapSnapshot, top: str) -> list[heap_records.BlockNode]:
    """Return the node and all below it; a graph that a hostile process made to be a ring ends all the same."""
    by_name = {node.node_name: node for node in snapshot.nodes}
    below, nodes = [top], dict[str, heap_records.BlockNode]()
    while below and len(nodes) < 256:
        node = by_name.get(below.pop(0))
        if node is not None and node.node_name not in nodes:
            nodes[node.node_name] = node
            below += [edge.node_name for edge in node.children]
    return list(nodes.values())


def _queued(snapshot: heap_records.HeapSnapshot, owner: int) -> tuple[int, ...]:
    """Return the coroutines in the throttle queues of a backend or a filter node."""
    members = (member for group in snapshot.throttle_groups for member in group.members)
    return tuple(
        waiter for member in members if member.owner_address == owner for queue in member.queued for waiter in queue
    )


def _carried(snapshot: heap_records.HeapSnapshot, node: heap_records.BlockNode) -> tuple[int, ...]:
    """Return the coroutines whose request this node tracks, or that wait inside its driver."""
    clients = [client for client in snapshot.nbd_clients if client.node_name == node.node_name]
    slots = tuple(slot.coroutine for client in clients for slot in client.requests)
    waiting = tuple(waiter for client in clients for waiter in client.waiting_for_slot)
    return tuple(request.coroutine for request in node.requests) + node.flush_waiters + slots + waiting
