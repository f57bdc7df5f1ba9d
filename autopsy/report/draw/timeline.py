"""Draws the capture on one axis: steps, stops of the VM, questions to the monitor, on both clocks."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.bundle.manifest import Manifest, StepRecord
from autopsy.bundle.records import Stop
from autopsy.dataclass import dataclass
from autopsy.facts.model.facts import Asked, Facts
from autopsy.report.clock_text import Calendar
from autopsy.report.units import milliseconds

WIDTH = 960
LEFT = 168
RIGHT = 40  # room for half of a time with hundredths, below the last tick
TOP = 46
ROW = 24
LEAST = 3  # so that what took microseconds can be seen
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300)
MOST_TICKS = 9
MOST_QUESTIONS = 400


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that took a while. `look` is its outcome's name, `answered`, `silent` or `stop`."""

    x: float
    width: float
    y: int
    look: str
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the picture: its name on the left, and what it says on the right of its bar."""

    y: int
    name: str
    note: str
    note_x: float
    left: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark on the axis with both clocks."""

    x: float
    utc: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineDrawing:
    """The whole picture."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    zone: str
    day: str
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


def draw_timeline(
    manifest: Manifest, facts: Facts, stops: Iterable[Stop], calendar: Calendar
) -> TimelineDrawing | None:
    """Return the drawing, None where no step was recorded."""
    steps = manifest.steps
    if not steps:
        return None
    start = min(manifest.began.monotonic_ns, *(step.start_ns for step in steps))
    end = max(start + 1_000_000, *(step.end_ns for step in steps))
    scale = _Scale(start, (WIDTH - LEFT - RIGHT) / (end - start))
    lanes: list[Lane] = []
    bars: list[Bar] = []
    for index, step in enumerate(steps):
        y = TOP + index * ROW
        x, width = scale.span(step.start_ns, step.end_ns)
        note = milliseconds((step.end_ns - step.start_ns) / 1e6)
        note += "" if step.outcome == "Collected" else f", {step.outcome}"
        left = x + width > WIDTH - 200
        lanes.append(Lane(y, step.name, note, x - 6 if left else x + width + 6, left))
        bars.append(Bar(x, width, y, step.outcome, _words(step, calendar)))
    y = TOP + len(steps) * ROW + 8
    bars += [
        Bar(*scale.span(stop.start_ns, stop.end_ns), y, "stop", f"{(stop.end_ns - stop.start_ns) / 1e6:.2f} ms")
        for stop in stops
    ]
    lanes.append(Lane(y, f"VM stood still {_stopped(steps)}", "", 0, left=False))
    y += ROW
    bars += _questions(facts.monitor.asked[:MOST_QUESTIONS], scale, y)
    lanes.append(Lane(y, "QMP", "", 0, left=False))
    return TimelineDrawing(
        width=WIDTH,
        height=y + ROW + 34,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP - 8,
        bottom=y + ROW,
        zone=calendar.zone,
        day=calendar.utc(start, digits=0)[:10],
        lanes=tuple(lanes),
        bars=tuple(bars),
        ticks=tuple(_ticks(start, end, scale, calendar)),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    start: int
    per_ns: float

    def x(self, ns: int) -> float:
        return round(min(max(LEFT + (ns - self.start) * self.per_ns, LEFT), WIDTH - RIGHT), 1)

    def span(self, start: int, end: int) -> tuple[float, float]:
        x = self.x(start)
        return x, max(LEAST, round(self.x(end) - x, 1))


def _words(step: StepRecord, calendar: Calendar) -> str:
    why = f": {step.why}" if step.why else ""
    return f"{step.name}, {calendar.utc(step.start_ns)} UTC, {step.outcome}{why}"


def _stopped(steps: Iterable[StepRecord]) -> str:
    return f"{sum(step.stop_ns for step in steps) / 1e6:.2f} ms"


def _questions(asked: Iterable[Asked], scale: _Scale, y: int) -> list[Bar]:
    bars = []
    for question in asked:
        exchange = question.exchange
        if exchange.outcome == "skipped":
            continue
        x, width = scale.span(exchange.asked_ns, exchange.asked_ns + int(exchange.ms * 1e6))
        look = "silent" if exchange.outcome in {"no answer", "silent", "busy", "refused"} else "answered"
        bars.append(Bar(x, width, y, look, f"{exchange.question}: {exchange.outcome}, {milliseconds(exchange.ms)}"))
    return bars


def _ticks(start: int, end: int, scale: _Scale, calendar: Calendar) -> Iterable[Tick]:
    seconds = (end - start) / 1e9
    step = next((tick for tick in TICKS if seconds / tick <= MOST_TICKS), seconds / MOST_TICKS)
    number = 0
    while number * step <= seconds and number <= MOST_TICKS:
        ns = start + int(number * step * 1e9)
        digits = 0 if step >= 1 else 2
        yield Tick(scale.x(ns), calendar.utc(ns, digits=digits)[11:], calendar.host(ns, digits=digits)[11:])
        number += 1
