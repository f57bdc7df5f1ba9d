"""Adds to the drawing what the graph of waits knows beyond a request's place and a thread's sleep; marks the ends."""

from __future__ import annotations

from typing import Literal

import msgspec

from autopsy.diagnose.diagnosis import WaitEdge, WaitNode
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.kernel_sleepers import sleepers
from autopsy.diagnose.queries.threads import by_role, named
from autopsy.diagnose.waits.graph import Graph
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role
from autopsy.facts.subjects import Subject

MOST_BEYOND = 24
MOST_ARROWS = 60


def add(  # noqa: C901 - one branch for each pair of kinds
    facts: Facts, graph: Graph, nodes: dict[str, WaitNode], edges: list[WaitEdge]
) -> None:
    """Draw who waits beyond: requests of one place, and threads of one kind of sleep, are one box each already."""
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    places = {each.address: each.park.name for each in parked}
    asleep = {each.thread.tid: f"kernel {each.family.id}" for each in sleepers(facts)}
    beyond: dict[WaitEdge, None] = {}
    for wait in graph.waits:
        waiter, holder, how = "", "", wait.how.value
        match wait.waiter, wait.on:
            case subjects.Thread(tid), subjects.Request(address):
                waiter, holder = _main(facts, tid, nodes), f"requests {places.get(address)}"
            case subjects.Request(address), subjects.Thread(tid):
                waiter, holder, how = f"place {places.get(address)}", asleep.get(tid, ""), "whose threads wait for"
            case (_, subjects.Lock() | subjects.Kernel() | subjects.Thread()) | (subjects.Lock(), _):
                continue  # drawn where the threads are
            case subjects.Request(address), on:
                waiter, holder, how = f"place {places.get(address)}", _node(on, nodes), "of"
            case subjects.Thread(tid), on:
                waiter, holder, how = asleep.get(tid, ""), _node(on, nodes), "on"
            case above, on:
                waiter, holder = _node(above, nodes), _node(on, nodes)
        if waiter in nodes and holder in nodes and len(beyond) < MOST_ARROWS:
            beyond[WaitEdge(waiter=waiter, holder=holder, label=how)] = None
    for edge in beyond:
        if not _leads(edges + [each for each in beyond if each != edge], edge.waiter, edge.holder):
            edges.append(edge)


def _leads(edges: list[WaitEdge], start: str, end: str) -> bool:
    """Tell whether other arrows lead there already: a shorter one beside them would say nothing more."""
    found = {start}
    left = [start]
    while left:
        at = left.pop()
        for edge in edges:
            if edge.waiter == at and edge.holder not in found:
                found.add(edge.holder)
                left.append(edge.holder)
    return end in found


def _main(facts: Facts, tid: int, nodes: dict[str, WaitNode]) -> str:
    identity = f"thread {tid}"
    found = next((each for each in by_role(facts, Role.MAIN) if each.tid == tid), None)
    if found is not None and identity not in nodes:
        nodes[identity] = WaitNode(id=identity, kind="thread", label=named(found))
    return identity


def mark_ends(nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    """Mark each node that others wait for and that waits for nobody."""
    waiters = {edge.waiter for edge in edges}
    for holder in {edge.holder for edge in edges} - waiters:
        if holder in nodes:
            nodes[holder] = msgspec.structs.replace(nodes[holder], end=True)


def _node(subject: Subject, nodes: dict[str, WaitNode]) -> str:
    record = naming.record(subject)
    identity = f"{record.kind} {record.name}"
    if identity not in nodes and sum(each.kind in {"peer", "resource"} for each in nodes.values()) < MOST_BEYOND:
        kind: Literal["peer", "resource"] = (
            "peer" if isinstance(subject, subjects.Peer | subjects.Server) else "resource"
        )
        words = (record.name, "")
        if isinstance(subject, subjects.FileSystem) and subject.fstype:
            words = (subject.path, f"{subject.fstype} on {subject.source}")
        nodes[identity] = WaitNode(id=identity, kind=kind, label=words[0], detail=words[1])
    return identity
