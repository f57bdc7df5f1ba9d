"""Write coroutines for eyes: identical stacks once, with their count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from autopsy.bundle.records import CoMutex, Coroutine, Frame

ADDRESSES_PER_LINE = 8


def render(coroutines: Iterable[Coroutine], comutexes: Iterable[CoMutex] = ()) -> tuple[str, tuple[Coroutine, ...]]:
    """Return the text, and the coroutines with the line at which each one's group begins."""
    waits_for = {waiter: mutex for mutex in comutexes for waiter in mutex.waiters}
    everyone = tuple(coroutines)
    groups: dict[tuple[object, ...], list[Coroutine]] = {}
    for coroutine in everyone:
        if coroutine.state in ("parked", "unclear"):
            groups.setdefault((coroutine.state, coroutine.since_first, coroutine.frames), []).append(coroutine)
    counts = Counter(coroutine.state for coroutine in everyone)
    lines = [", ".join(f"{counts[state]} {state}" for state in ("parked", "running", "pooled", "unclear")), ""]
    begins: dict[int, int] = {}
    for group in sorted(groups.values(), key=len, reverse=True):
        for coroutine in group:
            begins[coroutine.address] = len(lines) + 1
        lines += [*_group(group, waits_for), ""]
    placed = tuple(msgspec.structs.replace(coroutine, line=begins.get(coroutine.address, 0)) for coroutine in everyone)
    return "\n".join(lines), placed


def frame_line(level: int, frame: Frame) -> str:
    """Return one frame as a debugger would print it, with what is known of a nameless one."""
    module = frame.module.rsplit("/", 1)[-1]
    if frame.function:
        words = frame.function
    elif frame.module:
        words = f"?? (static near {frame.near or 'nothing exported'}, begins at {module}+{frame.unwind_start:#x})"
    else:
        words = "??"
    where = f" at {frame.file}:{frame.line}" if frame.file else f" ({module}+{frame.offset:#x})" if module else ""
    return f"#{level:<3} {frame.pc:#018x} in {words}{where}{' (inlined)' if frame.inlined else ''}"


def _group(group: list[Coroutine], waits_for: Mapping[int, CoMutex]) -> list[str]:
    first = group[0]
    noun = "coroutine" if len(group) == 1 else "coroutines"
    since = "" if first.since_first == "unknown" else f", {first.since_first} since the first snapshot"
    lines = [
        f"{len(group)} {noun} {first.state} alike{since}:" if len(group) > 1 else f"1 {noun} {first.state}{since}:"
    ]
    addresses = [f"{coroutine.address:#x}" for coroutine in group]
    rows = range(0, len(addresses), ADDRESSES_PER_LINE)
    lines += ["  " + " ".join(addresses[start : start + ADDRESSES_PER_LINE]) for start in rows]
    holders = [coroutine for coroutine in group if coroutine.locks_held]
    lines += [f"  {holder.address:#x} holds {holder.locks_held} CoMutexes" for holder in holders]
    mutexes = Counter(waits_for[coroutine.address] for coroutine in group if coroutine.address in waits_for)
    lines += [
        f"  {number} of them wait for CoMutex {mutex.address:#x}, {_held(mutex)}" for mutex, number in mutexes.items()
    ]
    lines += [
        f"  {coroutine.address:#x} was scheduled by {coroutine.scheduled_by}"
        for coroutine in group
        if coroutine.scheduled_by
    ]
    lines += [f"  {coroutine.address:#x}: {coroutine.why_unclear}" for coroutine in group if coroutine.why_unclear]
    return lines + [frame_line(level, frame) for level, frame in enumerate(first.frames)]


def _held(mutex: CoMutex) -> str:
    return f"which {mutex.holder:#x} holds" if mutex.holder else "which is being handed over"
