"""Draws a disk's request path as a line with stations, from the guest down to whoever must answer."""

from __future__ import annotations

from dataclasses import dataclass

from autopsy.diagnose.diagnosis import DiskPath, Hop
from autopsy.report.units import count

WIDTH = 440
LINE_X = 74
STEP = 62
TOP = 34
NAME_FITS = 42  # characters
DETAIL_FITS = 52
KINDS = {
    "guest": "guest",
    "device": "device model",
    "throttle": "I/O limits",
    "node": "block node",
    "aio": "AIO engine",
    "host": "host",
    "peer": "server",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One hop, drawn. `reached` says that requests get there; behind the stuck hop they do not."""

    y: int
    kind: str
    name: str
    detail: str
    in_flight: str
    stuck: bool
    reached: bool
    hop: Hop


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDrawing:
    """One disk's path. The line is drawn to `solid_to`, and dashed from there."""

    id: str
    disk: str
    sentence: str
    stuck: bool
    summary: str
    width: int
    height: int
    line_x: int
    top: int
    solid_to: int
    bottom: int
    stations: tuple[Station, ...]


def draw_path(path: DiskPath, number: int) -> PathDrawing:
    """Return the drawing of one disk's path; `number` makes its ids."""
    stuck_at = path.stuck_at if path.stuck_at is not None else len(path.hops)
    stations = tuple(
        Station(
            y=TOP + index * STEP,
            kind=KINDS[hop.kind],
            name=shorten(hop.name if hop.name != hop.kind else _own_name(hop), NAME_FITS),
            detail=shorten(hop.detail if hop.name != hop.kind or hop.kind == "device" else "", DETAIL_FITS),
            in_flight=f"{hop.in_flight:,}" if hop.in_flight is not None else "",
            stuck=hop.stuck,
            reached=index <= stuck_at,
            hop=hop,
        )
        for index, hop in enumerate(path.hops)
    )
    bottom = stations[-1].y if stations else TOP
    return PathDrawing(
        id=f"path-{number}",
        disk=path.disk,
        sentence=path.sentence,
        stuck=path.stuck_at is not None,
        summary=_summary(path),
        width=WIDTH,
        height=bottom + 44,
        line_x=LINE_X,
        top=TOP,
        solid_to=next((station.y for station in stations if station.stuck), bottom),
        bottom=bottom,
        stations=stations,
    )


def shorten(text: str, most: int) -> str:
    """Leave out the middle of a long text: a path's end says more than its middle."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _own_name(hop: Hop) -> str:
    return {"guest": "guest's requests", "host": hop.detail or "host storage"}.get(hop.kind, hop.name)


def _summary(path: DiskPath) -> str:
    """Return the words beside a healthy disk that is folded."""
    completed = "its counters were not read twice"
    if path.completed is not None:
        completed = f"{count(path.completed, 'request')} completed between the two snapshots"
    return completed
