"""The graph of waits as it is shown: requests of one place are one box, and what waits for nobody is marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Literal

import msgspec

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import WaitEdge, WaitGraph, WaitNode
from autopsy.diagnose.queries import coroutine_mutexes, kernel_stacks, naming
from autopsy.diagnose.queries.kernel_sleepers import Sleeper, sleepers
from autopsy.diagnose.queries.requests import counted, disk_names, their_disks
from autopsy.diagnose.queries.threads import by_tid, looks, named
from autopsy.diagnose.waits.ends import rings_of
from autopsy.diagnose.waits.graph import Graph
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import CoroutineFact, Facts, ThreadFact
from autopsy.facts.model.yield_points import SERVED, Park
from autopsy.facts.subjects import Subject

MOST = 60
PAGE = 4096  # nothing lies in the first
MOST_ARROWS = 2 * MOST
# Of these it is only known that it is one of several: an arrow past others says nothing more.
ONE_OF_SEVERAL = frozenset({How.POLLS_FOR, How.BEHIND})
OF_THE_HOST = frozenset({Park.BLKIO, Park.NVME})
Kind = Literal["thread", "coroutine", "lock", "resource", "peer"]


@dataclass(slots=True)
class _Sheet:
    """What is drawn so far, and what the boxes are told from."""

    parked: Mapping[int, CoroutineFact]
    places: Mapping[Subject, subjects.Place]
    asleep: Mapping[int, Sleeper]
    by_tid: Mapping[int, ThreadFact]
    comutexes: frozenset[int]
    suffixes: dict[subjects.Place, str] = field(default_factory=dict)
    groups: dict[subjects.Request, str] = field(default_factory=dict)
    members: dict[str, dict[int, CoroutineFact]] = field(default_factory=dict)
    boxes: dict[Subject, str] = field(default_factory=dict)
    nodes: dict[str, WaitNode] = field(default_factory=dict)
    edges: dict[WaitEdge, How] = field(default_factory=dict)


def draw(facts: Facts, graph: Graph) -> WaitGraph:
    """Return the graph without the idle, bounded, with its rings and ends marked."""
    if not graph.waits:
        return WaitGraph()
    sheet = _sheet(facts, graph.waits)
    rings = _rings(graph)
    holders: dict[Subject, Subject] = {
        wait.waiter: wait.on for wait in graph.waits if isinstance(wait.waiter, subjects.Lock)
    }
    for wait in graph.waits:
        if len(sheet.edges) >= MOST_ARROWS:
            break
        circular = wait.waiter in rings and rings[wait.waiter] == rings.get(wait.on)
        if circular or not _is_back(sheet, wait, holders):
            _draw(sheet, facts, wait, circular=circular)
    for identity, by_address in sheet.members.items():
        members = list(by_address.values())
        disks = disk_names(their_disks(facts, members)[:3])
        label, cites = counted(facts, tuple(members)), tuple(request.cite for request in members[:3])
        box = WaitNode(id=identity, kind="coroutine", label=label, detail=f"of {disks}" if disks else "", cites=cites)
        sheet.nodes[identity] = box
    edges = _without_detours(sheet.edges)
    nodes = _with_ends(sheet.nodes, edges)
    return WaitGraph(nodes=nodes[:MOST], edges=tuple(edges))


def _rings(graph: Graph) -> dict[Subject, frozenset[Subject]]:
    """Return for each that is in a ring which one; one that no loop is in is drawn all the same."""
    whole = graph.numbered
    both = (subject for place, subject in enumerate(whole.subjects) if whole.onward[place] and whole.back[place])
    if not any(isinstance(subject, subjects.Lock | subjects.Thread) for subject in both):
        return {}  # no ring goes round without a lock or a thread
    return {subject: ring for ring in rings_of(whole) for subject in ring}


def _sheet(facts: Facts, waits: Iterable[Wait]) -> _Sheet:
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return _Sheet(
        parked={coroutine.address: coroutine for coroutine in parked},
        places={wait.waiter: wait.on for wait in waits if isinstance(wait.on, subjects.Place)},
        asleep={sleeper.thread.tid: sleeper for sleeper in sleepers(facts)},
        by_tid=by_tid(facts),
        comutexes=frozenset(mutex.address for mutex in coroutine_mutexes.of(facts)),
    )


def _is_back(sheet: _Sheet, wait: Wait, holders: Mapping[Subject, Subject]) -> bool:
    """Tell whether an arrow belongs to a lock whose holder and waiters are one box, though they are in no ring."""
    match wait.waiter, wait.on:
        case subjects.Request(), subjects.Lock():
            holder = holders.get(wait.on)
            return isinstance(holder, subjects.Request) and _group(sheet, wait.waiter) == _group(sheet, holder)
        case _:
            return False


def _draw(sheet: _Sheet, facts: Facts, wait: Wait, *, circular: bool) -> None:
    waiter, label = _box(sheet, facts, wait.waiter, wait), _words(wait)
    on = wait.on
    # Worker threads that sleep alike are told by where they sleep.
    if isinstance(wait.waiter, subjects.Place) and isinstance(on, subjects.Thread) and on.tid in sheet.asleep:
        asleep = sheet.asleep[on.tid]
        boxes = [identity for identity in sheet.nodes if identity.startswith(f"kernel {asleep.family.id}")]
        if boxes:
            edge = WaitEdge(waiter=waiter, holder=boxes[0], label="whose threads wait for")
            sheet.edges.setdefault(edge, wait.how)
        return
    holder = _box(sheet, facts, on, wait)
    sheet.edges.setdefault(WaitEdge(waiter=waiter, holder=holder, label=label, in_cycle=circular), wait.how)


def _words(wait: Wait) -> str:
    """Return what stands on an arrow. By frames alone nobody saw who holds a lock."""
    by_frames = wait.how is How.HELD_BY and wait.certainty is Certainty.CONSISTENT
    return "must be held by" if by_frames else wait.how.value


def _group(sheet: _Sheet, request: subjects.Request) -> str:
    """Return which box a request is in: those that wait for the same at one place are one."""
    coroutine = sheet.parked.get(request.coroutine)
    if coroutine is None:
        return f"coroutine {request.coroutine:#x}"
    if request not in sheet.groups:
        place = sheet.places.get(request)
        sheet.groups[request] = f"requests {coroutine.park.name}{_suffix(sheet, place) if place else ''}"
    return sheet.groups[request]


def _suffix(sheet: _Sheet, place: subjects.Place) -> str:
    """Return what tells a place from others where requests wait likewise, for something else."""
    if place not in sheet.suffixes:
        alike = sum(other.park is place.park for other in sheet.suffixes)
        sheet.suffixes[place] = f" {alike + 1}" if alike else ""
    return sheet.suffixes[place]


def _box(sheet: _Sheet, facts: Facts, subject: Subject, wait: Wait) -> str:
    """Return the box of a subject, made where there is none."""
    if isinstance(subject, subjects.Request) and subject.coroutine in sheet.parked:
        identity = _group(sheet, subject)
        if identity not in sheet.nodes:
            sheet.nodes[identity] = WaitNode(id=identity, kind="coroutine", label="")
            sheet.members[identity] = {}
        sheet.members[identity][subject.coroutine] = sheet.parked[subject.coroutine]
        return identity
    if subject not in sheet.boxes:
        node = _node(sheet, facts, subject, wait.cites)
        sheet.nodes.setdefault(node.id, node)
        sheet.boxes[subject] = node.id
    return sheet.boxes[subject]


def _node(  # noqa: PLR0911 - one return for each kind of box
    sheet: _Sheet, facts: Facts, subject: Subject, cites: tuple[Cite, ...]
) -> WaitNode:
    match subject:
        case subjects.Request(address):
            ended = "a coroutine that has ended"
            return WaitNode(id=f"coroutine {address:#x}", kind="coroutine", label=ended, cites=cites[:1])
        case subjects.Thread(tid):
            thread = sheet.by_tid.get(tid)
            seen = tuple(look.cite for look in looks(thread)[:1]) if thread else ()
            label = named(thread) if thread else f"thread {tid}"
            return WaitNode(id=f"thread {tid}", kind="thread", label=label, cites=seen)
        case subjects.Lock():
            return _lock(sheet, facts, subject, cites)
        case subjects.Place(park):
            kind: Kind = "peer" if park in SERVED - OF_THE_HOST else "resource"
            return WaitNode(id=f"place {park.name}{_suffix(sheet, subject)}", kind=kind, label=naming.name(subject))
        case subjects.Kernel(wait, on):
            return _kernel(sheet, wait, on, cites)
        case subjects.FileSystem(path, fstype, source) if fstype:
            record = naming.record(subject)
            detail = f"{fstype} on {source}"
            return WaitNode(id=f"{record.kind} {record.name}", kind="resource", label=path, detail=detail)
        case _:
            record = naming.record(subject)
            other: Kind = "peer" if isinstance(subject, subjects.Peer | subjects.Server) else "resource"
            return WaitNode(id=f"{record.kind} {record.name}", kind=other, label=record.name)


def _lock(sheet: _Sheet, facts: Facts, lock: subjects.Lock, cites: tuple[Cite, ...]) -> WaitNode:
    address = lock.address
    if address in sheet.comutexes:
        label, identity = "a coroutine mutex", f"comutex {address:#x}"
    else:
        mutexes = facts.locks.value.mutexes if isinstance(facts.locks, Known) else ()
        mutex = next((known for known in mutexes if known.address == address), None)
        name = (mutex.in_object or mutex.name) if mutex else lock.within
        label, identity = name or "a mutex", f"mutex {address:#x}"
    # One that only frames speak of has no address of its own.
    detail = f"{address:#x}" if address >= PAGE else ""
    return WaitNode(id=identity, kind="lock", label=label, detail=detail, cites=cites[:1])


def _kernel(sheet: _Sheet, wait: str, on: str, cites: tuple[Cite, ...]) -> WaitNode:
    asleep = next((sleeper for sleeper in sheet.asleep.values() if sleeper.family.id == wait), None)
    label = asleep.family.words if asleep else wait
    detail = kernel_stacks.deepest(asleep.look, asleep.family) if asleep else ""
    identity = f"kernel {wait} {on}".strip()
    return WaitNode(id=identity, kind="resource", label=label, detail=detail, cites=cites[1:2])


def _without_detours(edges: Mapping[WaitEdge, How]) -> list[WaitEdge]:
    """Leave out the arrows of what may be one of several, where others lead there too."""
    kept = list(edges)
    for edge, how in edges.items():
        others = [other for other in kept if other is not edge]
        if how in ONE_OF_SEVERAL and _leads(others, edge.waiter, edge.holder):
            kept = others
    return kept


def _leads(edges: list[WaitEdge], start: str, end: str) -> bool:
    reached = {start}
    left = [start]
    while left:
        at = left.pop()
        for edge in edges:
            if edge.waiter == at and edge.holder not in reached:
                reached.add(edge.holder)
                left.append(edge.holder)
    return end in reached


def _with_ends(nodes: Mapping[str, WaitNode], edges: Iterable[WaitEdge]) -> tuple[WaitNode, ...]:
    """Mark each node that others wait for and that waits for nobody."""
    edges = tuple(edges)
    last = {edge.holder for edge in edges} - {edge.waiter for edge in edges}
    return tuple(
        msgspec.structs.replace(node, end=True) if identity in last else node for identity, node in nodes.items()
    )
