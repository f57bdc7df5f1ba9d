"""Draws a disk's request path as a line with stations, from the guest down to whoever must answer.

Where the path forks, so does the line: what parts from it goes down beside it, and the line goes on below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import DiskPath, Hop
from autopsy.report.draw.text_width import elide
from autopsy.report.units import count

WIDTH = 440
LINE_X = 74
BESIDE = 34  # between the line and a branch of it
STEP = 62
TOP = 34
NAME_SIZE, DETAIL_SIZE = 14.5, 12.0  # of the letters, as the template has them
TEXT_X = 24  # from the line
MARGIN = 6
KINDS = {
    "guest": "guest",
    "device": "device model",
    "throttle": "I/O limits",
    "node": "block node",
    "aio": "AIO engine",
    "host": "host",
    "peer": "server",
    "job": "block job",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One hop, drawn. `reached` says that requests get there; behind the stuck hop they do not."""

    x: int
    y: int
    kind: str
    name: str
    detail: str
    in_flight: str
    stuck: bool
    reached: bool
    hop: Hop


@dataclass(frozen=True, slots=True)
class Track:
    """A piece of a line, as an SVG path: dashed where no request gets to."""

    path: str
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PathDrawing:
    """The path of a disk, or of a job."""

    id: str
    disk: str
    owner: str
    whose: str
    sentence: str
    note: str
    stuck: bool
    summary: str
    width: int
    height: int
    line_x: int
    top: int
    tracks: tuple[Track, ...]
    stations: tuple[Station, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """One hop in its place: the line it is on, the trunk being the first, and its number on it."""

    line: int
    index: int
    hop: Hop
    words: str


def draw_path(path: DiskPath, number: int) -> PathDrawing:
    """Return the drawing of one path; `number` makes its ids."""
    rows = tuple(_rows(path))
    lines = (path.hops, *(branch.hops for branch in path.branches))
    stuck_at = (path.stuck_at, *(branch.stuck_at for branch in path.branches))
    y_of = {(row.line, row.index): TOP + place * STEP for place, row in enumerate(rows)}
    # A branch is reached as far as the line is that it parts from.
    lost = tuple(
        line > 0 and path.stuck_at is not None and path.branches[line - 1].at >= path.stuck_at
        for line in range(len(lines))
    )
    stations = tuple(
        _station(row, y_of[row.line, row.index], reached=not lost[row.line] and _reached(stuck_at[row.line], row.index))
        for row in rows
    )
    bottom = max(y_of.values(), default=TOP)
    return PathDrawing(
        id=f"path-{number}",
        disk=path.disk,
        owner=path.owner,
        whose=_whose(path),
        sentence=path.sentence,
        note=_note(path),
        stuck=path.is_stuck,
        summary=_summary(path),
        width=WIDTH,
        height=bottom + 44,
        line_x=LINE_X,
        top=TOP,
        tracks=tuple(_tracks(path, lines, stuck_at, y_of, lost)),
        stations=stations,
    )


def _rows(path: DiskPath) -> Iterator[_Row]:
    """Yield the trunk's hops from the top, and below the one that it parts from each branch."""
    for index, hop in enumerate(path.hops):
        yield _Row(0, index, hop, "")
        for line, branch in enumerate(path.branches, start=1):
            if branch.at == index:
                for place, below in enumerate(branch.hops):
                    yield _Row(line, place, below, branch.words if not place else "")


def _reached(stuck_at: int | None, index: int) -> bool:
    return stuck_at is None or index <= stuck_at


def _tracks(
    path: DiskPath,
    lines: Sequence[Sequence[Hop]],
    stuck_at: Sequence[int | None],
    y_of: dict[tuple[int, int], int],
    lost: Sequence[bool],
) -> Iterator[Track]:
    for line, hops in enumerate(lines):
        x = _x(line)
        if line and hops:
            fork, first = y_of[0, path.branches[line - 1].at], y_of[line, 0]
            yield Track(f"M{LINE_X},{fork} C{LINE_X},{fork + 30} {x},{fork + 22} {x},{first}", reached=not lost[line])
        for index in range(len(hops) - 1):
            reached = not lost[line] and _reached(stuck_at[line], index + 1)
            yield Track(f"M{x},{y_of[line, index]} V{y_of[line, index + 1]}", reached=reached)


def _x(line: int) -> int:
    return LINE_X + (BESIDE if line else 0)


def _station(row: _Row, y: int, *, reached: bool) -> Station:
    hop = row.hop
    room = WIDTH - _x(row.line) - TEXT_X - MARGIN
    kind = hop.name if hop.name == "client" else KINDS[hop.kind]
    detail = hop.detail if hop.name != hop.kind or hop.kind == "device" else ""
    return Station(
        x=_x(row.line),
        y=y,
        kind=f"{row.words}: {kind}" if row.words else kind,
        name=elide(_own_name(hop), room, NAME_SIZE, bold=True),
        detail=elide(detail, room, DETAIL_SIZE),
        in_flight=f"{hop.in_flight:,}" if hop.in_flight is not None else "",
        stuck=hop.stuck,
        reached=reached,
        hop=hop,
    )


def _whose(path: DiskPath) -> str:
    """Return whose requests they are; an export is called one already."""
    return path.disk if any(hop.name == "client" for hop in path.hops[:1]) else f"{path.owner} {path.disk}"


def _note(path: DiskPath) -> str:
    """Say why the numbers at the device and below it are not the same, where they are not."""
    device = next((hop.in_flight for hop in path.hops if hop.kind == "device"), None)
    lines = (path.hops, *(branch.hops for branch in path.branches))
    below = sum(hop.in_flight or 0 for hops in lines for hop in hops if hop.kind not in {"device", "guest"})
    if device is None or device == below or not below:
        return ""
    if device < below:
        return f"The device itself waits for {device:,} of these: the others were not asked through it."
    return f"The device waits for {device:,}: {below:,} were found parked below it, the others were on their way."


def _own_name(hop: Hop) -> str:
    if hop.kind == "guest":
        return f"{hop.name}'s requests"
    return hop.name if hop.name != hop.kind else {"host": hop.detail or "host storage"}.get(hop.kind, hop.name)


def _summary(path: DiskPath) -> str:
    """Return the words beside a healthy disk that is folded."""
    completed = "its counters were not read twice"
    if path.completed is not None:
        completed = f"{count(path.completed, 'request')} completed between the two snapshots"
    return completed
