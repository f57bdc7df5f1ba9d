"""Draws what the frames of imported evidence imply: threads, the locks between them, and whoever they ask."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import WaitEdge, WaitNode
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.threads import named, threads
from autopsy.diagnose.waits.graph import Graph
from autopsy.diagnose.waits.wait import Certainty
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject


def add(facts: Facts, graph: Graph, nodes: dict[str, WaitNode], edges: list[WaitEdge]) -> None:
    """Add an arrow for each wait that is known by frames alone; those of a ring are marked."""
    implied = [each for each in graph.waits if each.certainty is Certainty.CONSISTENT]
    rings = tuple(graph.ends().rings) if implied else ()
    labels = {subjects.thread(each): named(each) for each in threads(facts)}
    for wait in implied:
        for each in (wait.waiter, wait.on):
            identity = _identity(each)
            kind = _KINDS.get(type(each), "peer")
            label = labels.get(each, naming.name(each)) if isinstance(each, subjects.Thread) else naming.name(each)
            nodes.setdefault(identity, WaitNode(id=identity, kind=kind, label=label, cites=wait.cites))  # type: ignore[arg-type]  # one of its words
        circular = any({wait.waiter, wait.on} <= ring for ring in rings)
        edge = WaitEdge(
            waiter=_identity(wait.waiter), holder=_identity(wait.on), label=wait.how.value, in_cycle=circular
        )
        if edge not in edges:
            edges.append(edge)


_KINDS = {subjects.Thread: "thread", subjects.Lock: "lock"}


def _identity(subject: Subject) -> str:
    """Return the identity that the rest of the drawing gives the same subject."""
    match subject:
        case subjects.Thread(tid):
            return f"thread {tid}"
        case subjects.Lock(address, within):
            return f"mutex {address:#x} {within}".rstrip(" ")
        case other:
            return f"{naming.record(other).kind} {naming.name(other)}"
