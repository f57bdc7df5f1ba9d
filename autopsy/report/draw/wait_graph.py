"""Draws who waits for whom: waiters on the left, those who hold them up to the right, cycles marked."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import WaitEdge, WaitGraph, WaitNode
from autopsy.facts.cite import Cite
from autopsy.report.draw.text_width import elide
from autopsy.report.units import count

BOX_WIDTH = 264
BOX_HEIGHT = 52
COLUMN = 384
ROW = 84
MARGIN = 4
LABEL_FITS = 26
DETAIL_FITS = 31
LABEL_SIZE, DETAIL_SIZE = 13.0, 11.5  # of the letters, as the template has them
TEXT_ROOM = BOX_WIDTH - 22 - 8  # pixels, beside the mark of a resource
NAMES_SHOWN = 6
NUMBER = re.compile(r"thread (\d+)\b.*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One node or several that are alike, drawn."""

    x: int
    y: int
    kind: str
    lines: tuple[str, ...]
    detail: str
    whole: str
    in_cycle: bool
    is_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """One edge, drawn as an SVG path with a label beside its middle."""

    path: str
    label: str
    label_x: int
    label_y: int
    in_cycle: bool


@dataclass(frozen=True, slots=True)
class Sentence:
    """One edge in words, for those who see no picture."""

    text: str
    in_cycle: bool
    cites: tuple[Cite, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitsDrawing:
    """The whole picture, and the same in sentences."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    sentences: tuple[Sentence, ...]
    cyclic: bool


@dataclass(slots=True)
class _Cluster:
    """Nodes that wait alike and that nobody waits for, or a single node."""

    nodes: list[WaitNode]
    depth: int = 0
    x: int = 0
    y: int = 0


def draw_waits(graph: WaitGraph) -> WaitsDrawing | None:
    """Return the drawing, None where nobody is known to wait."""
    known = {node.id: node for node in graph.nodes}
    edges = [edge for edge in graph.edges if edge.waiter in known and edge.holder in known]
    if not edges:
        return None
    clusters = _clusters(known, edges)
    of = {node.id: cluster for cluster in clusters for node in cluster.nodes}
    drawn = dict.fromkeys((id(of[edge.waiter]), id(of[edge.holder]), edge.label, edge.in_cycle) for edge in edges)
    by_id = {id(cluster): cluster for cluster in clusters}
    links = [(by_id[waiter], by_id[holder], label, cycle) for waiter, holder, label, cycle in drawn]
    _place(clusters, links)
    circular = {node for edge in edges if edge.in_cycle for node in (edge.waiter, edge.holder)}
    pairs = {(id(waiter), id(holder)) for waiter, holder, _, _ in links}
    bottom = max(cluster.y for cluster in clusters) + BOX_HEIGHT
    return WaitsDrawing(
        width=max(cluster.x for cluster in clusters) + BOX_WIDTH + MARGIN,
        height=bottom + MARGIN + (30 if any(link[1].depth - link[0].depth != 1 for link in links) else 0),
        boxes=tuple(_box(cluster, circular) for cluster in clusters),
        arrows=tuple(
            _arrow(waiter, holder, label, in_cycle=cycle, both_ways=(id(holder), id(waiter)) in pairs)
            for waiter, holder, label, cycle in links
        ),
        sentences=_sentences(clusters, edges, known),
        cyclic=bool(circular),
    )


def _clusters(known: dict[str, WaitNode], edges: list[WaitEdge]) -> list[_Cluster]:
    outgoing: dict[str, list[tuple[str, str, bool]]] = defaultdict(list)
    awaited = {edge.holder for edge in edges}
    for edge in edges:
        outgoing[edge.waiter].append((edge.holder, edge.label, edge.in_cycle))
    alike: dict[object, list[WaitNode]] = {}
    for id_, node in known.items():
        if id_ not in awaited and id_ not in outgoing:
            continue
        key: object = id_ if id_ in awaited else (node.kind, tuple(outgoing[id_]))
        alike.setdefault(key, []).append(node)
    return [_Cluster(nodes) for nodes in alike.values()]


def _place(clusters: list[_Cluster], links: list[tuple[_Cluster, _Cluster, str, bool]]) -> None:
    """Put each holder to the right of its waiters; an edge that would close a ring goes back instead."""
    ordered = _waiters_first(clusters, links)
    rank = {id(cluster): number for number, cluster in enumerate(ordered)}
    for cluster in ordered:
        for waiter, holder, _, _ in links:
            if waiter is cluster and rank[id(holder)] > rank[id(cluster)]:
                holder.depth = max(holder.depth, cluster.depth + 1)
    columns: dict[int, list[_Cluster]] = defaultdict(list)
    for cluster in clusters:
        columns[cluster.depth].append(cluster)
    rows: dict[int, int] = {}
    for depth in sorted(columns):
        free = 0
        wanted = {
            id(cluster): [
                rows[id(waiter)] for waiter, holder, _, _ in links if holder is cluster and id(waiter) in rows
            ]
            for cluster in columns[depth]
        }
        for cluster in sorted(columns[depth], key=lambda cluster: min(wanted[id(cluster)], default=0)):
            rows[id(cluster)] = row = max(free, min(wanted[id(cluster)], default=0))
            cluster.x, cluster.y = MARGIN + depth * COLUMN, MARGIN + row * ROW
            free = row + 1


def _waiters_first(clusters: list[_Cluster], links: list[tuple[_Cluster, _Cluster, str, bool]]) -> list[_Cluster]:
    """Sort so that whoever waits comes before what it waits for, as far as rings allow; without recursion."""
    holders: dict[int, list[_Cluster]] = defaultdict(list)
    for waiter, holder, _, _ in links:
        holders[id(waiter)].append(holder)
    awaited = {id(holder) for _, holder, _, _ in links}
    seen: set[int] = set()
    ended: list[_Cluster] = []
    for start in sorted(clusters, key=lambda cluster: id(cluster) in awaited):
        stack: list[tuple[_Cluster, bool]] = [(start, False)]
        while stack:
            cluster, leaving = stack.pop()
            if leaving:
                ended.append(cluster)
            elif id(cluster) not in seen:
                seen.add(id(cluster))
                stack.append((cluster, True))
                stack += [(holder, False) for holder in holders[id(cluster)]]
    return ended[::-1]


def _box(cluster: _Cluster, circular: set[str]) -> Box:
    first = cluster.nodes[0]
    names = [node.label for node in cluster.nodes]
    label, detail = first.label, first.detail
    if len(names) > 1:
        label = count(len(names), first.kind)
        detail = ", ".join(NUMBER.sub(r"\1", name) for name in names)
        if len(detail) > DETAIL_FITS:
            detail = detail[: DETAIL_FITS - 2].rpartition(", ")[0] + ", …"
    lines = _lines(label)
    return Box(
        x=cluster.x,
        y=cluster.y,
        kind=first.kind,
        lines=lines,
        detail=elide(detail, TEXT_ROOM, DETAIL_SIZE) if len(lines) == 1 else "",
        whole="; ".join(names[:40]) + (f" ({first.detail})" if first.detail and len(names) == 1 else ""),
        in_cycle=any(node.id in circular for node in cluster.nodes),
        is_end=any(node.end for node in cluster.nodes),
    )


def _lines(text: str) -> tuple[str, ...]:
    """Break a label into two lines at most; a word that does not fit, such as a path, loses its middle."""
    lines = textwrap.wrap(text, LABEL_FITS, break_long_words=False, break_on_hyphens=False)
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    return tuple(elide(line, TEXT_ROOM, LABEL_SIZE, bold=True) for line in lines)


def _arrow(waiter: _Cluster, holder: _Cluster, label: str, *, in_cycle: bool, both_ways: bool) -> Arrow:
    if waiter is holder:
        x, y = waiter.x + BOX_WIDTH // 2, waiter.y + BOX_HEIGHT
        path = f"M{x + 30},{y} C{x + 70},{y + 40} {x - 70},{y + 40} {x - 30},{y + 2}"
        return Arrow(path=path, label=label, label_x=x, label_y=y + 26, in_cycle=in_cycle)
    shift = 11 if both_ways else 0
    if holder.depth - waiter.depth == 1:
        x1, y1 = waiter.x + BOX_WIDTH, waiter.y + BOX_HEIGHT // 2 - shift
        x2, y2 = holder.x - 2, holder.y + BOX_HEIGHT // 2 - shift
        middle = (x1 + x2) // 2
        path = f"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}"
        return Arrow(path=path, label=label, label_x=middle, label_y=(y1 + y2) // 2 - 6, in_cycle=in_cycle)
    if waiter.depth - holder.depth == 1:
        x1, y1 = waiter.x, waiter.y + BOX_HEIGHT // 2 + shift
        x2, y2 = holder.x + BOX_WIDTH + 2, holder.y + BOX_HEIGHT // 2 + shift
        middle = (x1 + x2) // 2
        path = f"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}"
        return Arrow(path=path, label=label, label_x=middle, label_y=(y1 + y2) // 2 + 16, in_cycle=in_cycle)
    x1, y1 = waiter.x + BOX_WIDTH // 2, waiter.y + BOX_HEIGHT
    x2, y2 = holder.x + BOX_WIDTH // 2, holder.y + BOX_HEIGHT + 2
    low = max(y1, y2) + 34
    path = f"M{x1},{y1} C{x1},{low} {x2},{low} {x2},{y2}"
    return Arrow(path=path, label=label, label_x=(x1 + x2) // 2, label_y=low - 4, in_cycle=in_cycle)


def _sentences(clusters: list[_Cluster], edges: list[WaitEdge], known: dict[str, WaitNode]) -> tuple[Sentence, ...]:
    of = {node.id: cluster for cluster in clusters for node in cluster.nodes}
    sentences: dict[object, Sentence] = {}
    for edge in edges:
        waiters = [node.label for node in of[edge.waiter].nodes]
        who = ", ".join(waiters[:NAMES_SHOWN])
        if len(waiters) > NAMES_SHOWN:
            who += f" and {len(waiters) - NAMES_SHOWN} more"
        holder = known[edge.holder]
        verb = {"waits for": "wait for", "sleeps in": "sleep in"}.get(edge.label, edge.label)
        label = verb if len(waiters) > 1 else edge.label
        if edge.label == "parked":
            label = "parked, waiting for"
        if edge.label == "held by":
            label = "is held by"
        what = f"{holder.label} ({holder.detail})" if holder.detail else holder.label
        key = (id(of[edge.waiter]), edge.holder, edge.label)
        cites = known[edge.waiter].cites[:2] + holder.cites[:2]
        sentences.setdefault(key, Sentence(f"{who} {label} {what}", edge.in_cycle, cites))
    return tuple(sentences.values())
