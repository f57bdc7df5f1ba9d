"""What a person reads of the difference of two captures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from autopsy.diff.difference import Count, Difference, DifferingReading, DiskChange, ParkCount, Side, StackCount

WIDTH = 22
MOST_ROWS = 24  # of one kind; --json has them all
MOST_FRAMES = 5


def lines(difference: Difference) -> Iterator[str]:
    """Yield the differences, the verdict's first; what does not differ is said in one line at the end."""
    yield from _heading(difference)
    same: list[str] = []
    for title, rows in (
        ("verdict", _told(difference.verdict)),
        ("state", _told(difference.state)),
        ("requests", _requests(difference.requests, same_process=difference.same_process)),
        ("disks", _disks(difference.disks)),
        ("throttle groups", _told(difference.throttle)),
        ("jobs", _told(difference.jobs)),
        ("threads", (*_counts(difference.threads), *_told(difference.moved))),
        ("stacks", _stacks(difference.stacks)),
        ("host", _told(difference.host)),
        ("build and arguments", _told(difference.target)),
    ):
        shown = tuple(rows)
        if not shown:
            same.append(title)
            continue
        yield ""
        yield title
        yield from (f"  {row}" for row in shown[:MOST_ROWS])
        if len(shown) > MOST_ROWS:
            yield f"  … and {len(shown) - MOST_ROWS} more (--json shows all)"
    if same:
        yield ""
        yield f"no difference: {', '.join(same)}"


def _heading(difference: Difference) -> Iterator[str]:
    yield f"A  {_side(difference.a)}"
    yield f"B  {_side(difference.b)}"
    later = f"{_span(abs(difference.seconds))} {'later' if difference.seconds >= 0 else 'earlier'}"
    if difference.same_process:
        yield f"   the same process, {later}"
    else:
        yield f"   another process, {later}: addresses and counters are not compared"


def _span(seconds: float) -> str:
    """Return a time as it is said: `8.5 days`."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _side(side: Side) -> str:
    return f"{side.name} (pid {side.pid}, {side.manager}) {side.utc[:19]}Z  {side.bundle}"


def _told(rows: Iterable[DifferingReading]) -> Iterator[str]:
    for row in rows:
        if len(row.a) + len(row.b) > 70:
            yield f"{row.what:<{WIDTH}} A: {row.a}"
            yield f"{'':<{WIDTH}} B: {row.b}"
        else:
            yield f"{row.what:<{WIDTH}} {row.a} → {row.b}"


def _counts(rows: Iterable[Count]) -> Iterator[str]:
    for row in rows:
        yield f"{row.what:<{WIDTH}} {row.a} → {row.b}"


def _requests(rows: Iterable[ParkCount], *, same_process: bool) -> Iterator[str]:
    for row in rows:
        stuck = ""
        if row.stuck_in_both:
            shown = ", ".join(row.stuck_in_both[:3])
            more = f" and {len(row.stuck_in_both) - 3} more" if len(row.stuck_in_both) > 3 else ""
            stuck = f"; {len(row.stuck_in_both)} stuck in both: {shown}{more}"
        elif same_process and row.a and row.b:
            stuck = "; none of them the same"
        count = f"{row.a} → {row.b}"
        yield f"{count:<{WIDTH}} {row.words}{stuck}"


def _disks(rows: Iterable[DiskChange]) -> Iterator[str]:
    for row in rows:
        parts = []
        if row.completed is not msgspec.UNSET:
            parts.append(f"completed {row.completed}")
        if row.in_flight_a is not msgspec.UNSET or row.in_flight_b is not msgspec.UNSET:
            parts.append(f"in flight {_number(row.in_flight_a)} → {_number(row.in_flight_b)}")
        parts += [f"{reading.what} {reading.a} → {reading.b}" for reading in row.told]
        if parts:
            yield f"{row.name:<{WIDTH}} {'; '.join(parts)}"


def _number(value: int | msgspec.UnsetType) -> str:
    return "?" if isinstance(value, msgspec.UnsetType) else str(value)


def _stacks(rows: Iterable[StackCount]) -> Iterator[str]:
    for row in rows:
        shown = " < ".join(row.functions[:MOST_FRAMES]) or "no frames"
        more = " < …" if len(row.functions) > MOST_FRAMES else ""
        count = f"{row.a} → {row.b} {'/'.join(row.roles)}"
        yield f"{count:<{WIDTH}} {shown}{more}"
