"""Draws what a watch had seen of the VM in the minute before its capture: a bar for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from autopsy.bundle.ring import RingSample
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import Facts
from autopsy.report.clock_text import Calendar
from autopsy.report.units import count

WIDTH = 960
LEFT = 168
TOP = 12
ROW = 44
TALL = 32  # of the tallest bar
WIDEST = 24.0
LEAST = 2.0
MOST_BARS = 240  # the newest; a watch keeps fewer


@dataclass(frozen=True, slots=True)
class SampleBar:
    """One sample in one row; `stuck` is how much of its height is of what did not move."""

    x: float
    y: float
    width: float
    height: float
    stuck: float
    title: str


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row: what its bars count, and how much the tallest one is."""

    y: int
    name: str
    note: str
    bars: tuple[SampleBar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteDrawing:
    """The whole picture; `words` say what it shows."""

    width: int
    height: int
    left: int
    first: str
    last: str
    words: str
    rows: tuple[SampleRow, ...]
    cite: Cite


Reading = tuple[float, float, str, str]  # how much, how much of it did not move; in words; in fewer


def draw_minute(facts: Facts, calendar: Calendar) -> MinuteDrawing | None:
    """Return the drawing, None where no watch had an eye on the VM."""
    if not isinstance(facts.before, Known) or len(facts.before.value.samples) < 2:
        return None
    samples = facts.before.value.samples[-MOST_BARS:]
    scale = _Scale(samples)
    rows = (
        _row(0, "block requests", samples, scale, _requests),
        _row(1, "bytes read and written", samples, scale, _bytes_of(samples)),
        _row(2, "threads in state D", samples, scale, _asleep),
    )
    seconds = (samples[-1].monotonic_ns - samples[0].monotonic_ns) / 1e9
    return MinuteDrawing(
        width=WIDTH,
        height=TOP + len(rows) * ROW + 22,
        left=LEFT,
        first=calendar.utc(samples[0].monotonic_ns, digits=0)[11:],
        last=calendar.utc(samples[-1].monotonic_ns, digits=0)[11:],
        words=f"The {seconds:.0f} s before this capture, in {count(len(samples), 'sample')} of a watch; "
        "what did not move is red.",
        rows=rows,
        cite=facts.before.cite,
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    samples: Sequence[RingSample]

    def span(self, number: int) -> tuple[float, float]:
        """Return where a sample's bar begins and how wide it is: up to the next, but for the last."""
        start, end = self.samples[0].monotonic_ns, self.samples[-1].monotonic_ns
        per_ns = (WIDTH - LEFT - WIDEST) / max(1, end - start)
        x = LEFT + (self.samples[number].monotonic_ns - start) * per_ns
        if number + 1 == len(self.samples):
            return round(x, 1), WIDEST / 2
        wide = (self.samples[number + 1].monotonic_ns - self.samples[number].monotonic_ns) * per_ns
        return round(x, 1), round(min(WIDEST, max(LEAST, wide - 1)), 1)


def _row(
    number: int, name: str, samples: Sequence[RingSample], scale: _Scale, read: Callable[[RingSample], Reading]
) -> SampleRow:
    y = TOP + number * ROW
    readings = [read(sample) for sample in samples]
    most = max(readings, key=lambda reading: reading[0])
    bars = []
    for place, (value, stuck, words, _) in enumerate(readings):
        x, width = scale.span(place)
        height = round(TALL * max(0.0, value) / max(1.0, most[0]), 1)
        red = round(min(height, TALL * max(0.0, stuck) / max(1.0, most[0])), 1)
        bars.append(SampleBar(x, round(y + TALL - height, 1), width, height, red, words))
    return SampleRow(y, name, f"{most[3]} at most", tuple(bars))


def _requests(sample: RingSample) -> Reading:
    if sample.requests is None:
        return 0.0, 0.0, "not counted", "0"
    words = f"{sample.requests} in flight, {sample.unmoved} of them did not move"
    return sample.requests, sample.unmoved, words, str(sample.requests)


def _asleep(sample: RingSample) -> Reading:
    return sample.threads_in_d, sample.threads_in_d, f"{sample.threads_in_d} in state D", str(sample.threads_in_d)


def _bytes_of(samples: Sequence[RingSample]) -> Callable[[RingSample], Reading]:
    moved = {samples[0].monotonic_ns: 0}
    for before, after in pairwise(samples):
        moved[after.monotonic_ns] = max(0, _bytes(after) - _bytes(before))

    def read(sample: RingSample) -> Reading:
        words = f"{moved[sample.monotonic_ns] / 1024:,.0f} KiB"
        return moved[sample.monotonic_ns], 0.0, words, words

    return read


def _bytes(sample: RingSample) -> int:
    return (sample.read_bytes or 0) + (sample.write_bytes or 0)
