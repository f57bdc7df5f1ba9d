"""Decides what a core leaves out where all of it would be too large: what matters least goes first."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

from autopsy.bundle.records import Region
from autopsy.dataclass import dataclass
from autopsy.linux.mappings import PAGE, Mapping, printable
from autopsy.linux.tasks.pagemap import Run
from autopsy.linux.tasks.priority import Unpreempted

LARGE = 1 << 20  # a block that malloc() maps by itself: a buffer or a cache, and seldom an object
LEVELS = 3  # from a stack to its coroutine, to the request's disk, to the group that throttles it
MOST_SCANNED = 256 << 20
PART = 1 << 20


class Worth(IntEnum):
    """How much is lost with a mapping, least first."""

    BUFFER = 1  # mapped for one large block
    HEAP = 2  # objects and buffers side by side
    STACKS_AND_DATA = 3  # coroutines wait on stacks; a program's data is where every list begins


@dataclass(frozen=True, slots=True)
class Wanted:
    """One mapping of which something is evidence, with the runs (address, bytes) of it that are there.

    `runs` are in memory; to read those that are `swapped` is to wait for the swap device.
    """

    mapping: Mapping
    runs: tuple[Run, ...]
    swapped: tuple[Run, ...] = ()

    @property
    def size(self) -> int:
        """Return the bytes to copy."""
        return sum(size for _, size in self.runs + self.swapped)


def worth(mapping: Mapping, stacks: frozenset[int], arenas: frozenset[int]) -> Worth:
    """Return what a mapping is worth; `stacks` and `arenas` are the starts of those."""
    if mapping.path == "[heap]" or mapping.start in arenas:
        return Worth.HEAP
    if mapping.path or mapping.inode or mapping.start in stacks:
        return Worth.STACKS_AND_DATA
    return Worth.BUFFER if mapping.size >= LARGE else Worth.HEAP


def within(
    wanted: Sequence[Wanted], worths: Sequence[Worth], cap: int, memory: int
) -> tuple[list[Wanted], list[Region]]:
    """Return what fits into `cap` bytes, and what is left out of each mapping that is cut.

    Of two mappings that are worth the same the larger is cut, and of a mapping its end, where the newest objects lie,
    and what is swapped out; but a page of it that a stack or a program's data leads to, over a few pointers, stays.
    `memory` is a descriptor of the process's memory.
    """
    kept = list(wanted)
    excess = sum(want.size for want in wanted) - cap
    if excess <= 0:
        return kept, []
    roots = [want.runs for want, worth in zip(wanted, worths, strict=True) if worth is Worth.STACKS_AND_DATA]
    others = [want.runs for want, worth in zip(wanted, worths, strict=True) if worth is not Worth.STACKS_AND_DATA]
    reached = _reached(roots, others, memory)
    left_out = []
    for index in sorted(range(len(wanted)), key=lambda index: (worths[index], -wanted[index].size)):
        if excess <= 0:
            break
        whole = kept[index]
        kept[index] = Wanted(whole.mapping, tuple(_shortened(whole.runs, max(0, whole.size - excess), reached)))
        excess -= whole.size - kept[index].size
        if kept[index].size < whole.size:
            left_out.append(_rest(whole, kept[index], cap))
    return kept, left_out


def _rest(whole: Wanted, kept: Wanted, cap: int) -> Region:
    there = set(_pages_of(kept.runs))
    first = next((page for page in _pages_of(whole.runs + whole.swapped) if page not in there), whole.mapping.start)
    size = (whole.size - kept.size) >> 10
    why = f"{size} KiB of what lies from here on: the core would be larger than {cap >> 20} MiB"
    return Region(start=first, size=whole.mapping.end - first, path=printable(whole.mapping.path), why=why)


def _pages_of(runs: Iterable[Run]) -> Iterator[int]:
    return (page for address, size in runs for page in range(address, address + size, PAGE))


def _shortened(runs: Sequence[Run], room: int, reached: set[int]) -> Iterator[Run]:
    """Yield the runs of what is reached, and of the beginning as far as there is room for it."""
    room -= sum(page in reached for page in _pages_of(runs)) * PAGE
    begun = end = 0
    for page in _pages_of(runs):
        if page not in reached:
            room -= PAGE
            if room < 0:
                continue
        if page != end:
            if end:
                yield begun, end - begun
            begun = page
        end = page + PAGE
    if end:
        yield begun, end - begun


def _reached(roots: Iterable[Iterable[Run]], doomed: Iterable[Iterable[Run]], memory: int) -> set[int]:
    """Return the pages of what may be cut that words of the roots lead to, and each one's next: objects cross pages."""
    places = sorted(run for runs in doomed for run in runs)
    starts = [address for address, _ in places]
    reached: set[int] = set()
    scanned: Iterable[Run] = [run for runs in roots for run in runs]
    left = MOST_SCANNED
    for _ in range(LEVELS):
        new: set[int] = set()
        for address, size in scanned:
            for at in range(address, address + size, PART):
                with Unpreempted():
                    data = _read(memory, at, min(PART, address + size - at))
                left -= len(data)
                new |= _pages(data, places, starts)
            if left < 0:
                return reached | new
        new -= reached
        reached |= new
        scanned = [(page, PAGE) for page in sorted(new)]
    return reached


def _pages(data: bytes, places: Sequence[Run], starts: Sequence[int]) -> set[int]:
    if not places:
        return set()
    lowest, end = starts[0], places[-1][0] + places[-1][1]
    words = memoryview(data[: len(data) & -8]).cast("Q")
    near = {word & -PAGE for word in words if lowest <= word < end}
    both = near | {page + PAGE for page in near}
    return {page for page in both if (at := bisect_right(starts, page) - 1) >= 0 and page < sum(places[at])}


def _read(memory: int, address: int, size: int) -> bytes:
    try:
        return os.pread(memory, size, address)
    except OSError:
        return b""
