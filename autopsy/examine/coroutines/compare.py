"""Lay two snapshots over each other: which coroutines did not move between them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec

from autopsy.bundle.records import Frame
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import PAGE, Core, CoreError
from autopsy.examine.coroutines.find import Saved

SinceFirst = Literal["stuck", "moved", "new", "gone", "unknown"]

# A waiting request's stack does change a little: its tracked request is a link in its node's list, and neighbours come
# and go. Such a word is a pointer before and after; what a request is about (offset, bytes, flags) is none.
MOST_LINKS = 8
# The stack of a neighbour that came or went while a snapshot was taken is in none of its mappings. Stacks are mapped
# within these bounds (64 to 128 TiB), in which no request's offset or length lies.
STACKS = range(1 << 46, 1 << 47, 8)
# What puts its tracked request (offset, bytes, who waits for it) on the stack. A flush says nothing that is its own.
TRACKS = frozenset({"bdrv_co_preadv_part", "bdrv_co_pwritev_part", "bdrv_co_pdiscard"})


@dataclass(frozen=True, slots=True)
class Compared:
    """The coroutines of both snapshots: all of the first's, then those that were parked since."""

    first: tuple[Saved, ...]
    new: tuple[Saved, ...]


def compare(core: Core, first: Iterable[Saved], second: Core, later: Iterable[Saved]) -> Compared:
    """Return the coroutines with what became of each since the first snapshot."""
    was = {saved.coroutine.address: saved for saved in first}
    now = {saved.coroutine.address: saved for saved in later}
    compared = tuple(_with(saved, _since(core, saved, second, now.get(address))) for address, saved in was.items())
    new = tuple(
        _with(saved, "new")
        for address, saved in now.items()
        if saved.coroutine.state == "parked" and (address not in was or was[address].coroutine.state != "parked")
    )
    return Compared(
        tuple(
            saved
            for saved in compared
            if saved.coroutine.address not in {newcomer.coroutine.address for newcomer in new}
        ),
        new,
    )


def _since(core: Core, saved: Saved, second: Core, later: Saved | None) -> SinceFirst:
    if saved.coroutine.state != "parked":
        return "unknown"
    if later is None or later.coroutine.state == "pooled":
        return "gone"
    if later.coroutine.state != "parked" or later.registers != saved.registers:
        return "moved"
    return "stuck" if _same_stack(core, second, saved) else "moved"


def is_same_request(core: Core, second: Core, saved: Saved, frames: Sequence[Frame]) -> bool:
    """Return whether a coroutine's outermost request is the same in both snapshots, whatever it did inside of it.

    `frames` are those of the first. Whoever reads an NBD server's answers for all others moves, and its own request
    does not.
    """
    begins = next((frame.pc for frame in reversed(frames) if frame.function in TRACKS), None)
    if begins is None:
        return False
    return _same_stack(core, second, saved, begins.to_bytes(8, "little"))


def _same_stack(core: Core, second: Core, saved: Saved, outside_of: bytes = b"") -> bool:
    """Return whether the used part of the stack is the same but for links of lists, from a return address outward."""
    start = saved.coroutine.sp & -8
    try:
        before = core.read(start, saved.top - start)
        after = second.read(start, saved.top - start)
    except CoreError:
        return False
    inner = before.rfind(outside_of) if outside_of else 0
    if inner < 0:
        return False
    before, after = before[inner & -8 :], after[inner & -8 :]
    changed = tuple(islice(_changes(before, after), MOST_LINKS + 1))
    return len(changed) <= MOST_LINKS and all(_is_link(core, old) and _is_link(second, new) for old, new in changed)


def _changes(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield each word that differs, as it was and as it is; a page at a time, for most are the same."""
    for start in range(0, len(before), PAGE):
        old, new = before[start : start + PAGE], after[start : start + PAGE]
        if old != new:
            pairs = zip(struct.iter_unpack("<Q", old), struct.iter_unpack("<Q", new), strict=True)
            yield from ((was, now) for (was,), (now,) in pairs if was != now)


def _is_link(core: Core, word: int) -> bool:
    if not word:
        return True
    load = core.load_at(word)
    if load is None:
        return word in STACKS
    return load.writable


def _with(saved: Saved, since: SinceFirst) -> Saved:
    return Saved(registers=saved.registers, coroutine=msgspec.structs.replace(saved.coroutine, since_first=since))
