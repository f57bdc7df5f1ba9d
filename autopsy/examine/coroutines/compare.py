"""Lay two snapshots over each other: which coroutines did not move between them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec

from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import PAGE, Core, CoreError
from autopsy.examine.core.symbols import Symbols
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


def track_requests(symbols: Symbols) -> tuple[range, ...]:
    """Return the addresses of the functions that put a tracked request on the stack."""
    starts = [start for name in TRACKS for start in symbols.find(name)]
    functions = [(start, symbols.function(start, called=False)) for start in starts]
    return tuple(range(start, start + symbol.size) for start, symbol in functions if symbol is not None)


def is_same_request(core: Core, second: Core, saved: Saved, tracking: Sequence[range]) -> bool:
    """Return whether a coroutine's outermost request is the same in both snapshots, whatever it did inside of it.

    `tracking` is what `track_requests` returns. Whoever reads an NBD server's answers for all others moves, and its own
    request does not. It may have been awake in one of the snapshots: a return address tells where its request begins,
    for its frames lead nowhere then.
    """
    stacks = _stacks(core, second, saved)
    if stacks is None:
        return False
    changed = 0
    for was, now in _inward(*stacks):
        if was != now:
            changed += 1
            if changed > MOST_LINKS or not (_is_link(core, was) and _is_link(second, now)):
                return False
        elif any(was in function for function in tracking):
            return True
    return False


def _same_stack(core: Core, second: Core, saved: Saved) -> bool:
    """Return whether the used part of the stack is the same but for links of lists."""
    stacks = _stacks(core, second, saved)
    if stacks is None:
        return False
    changed = tuple(islice(_changes(*stacks), MOST_LINKS + 1))
    return len(changed) <= MOST_LINKS and all(_is_link(core, old) and _is_link(second, new) for old, new in changed)


def _stacks(core: Core, second: Core, saved: Saved) -> tuple[bytes, bytes] | None:
    """Return the used part of a coroutine's stack in both snapshots, whole words."""
    start = saved.coroutine.sp & -8
    used = (saved.top - start) & -8
    try:
        return core.read(start, used), second.read(start, used)
    except CoreError:
        return None


def _changes(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield each word that differs, as it was and as it is; a page at a time, for most are the same."""
    for start in range(0, len(before), PAGE):
        old, new = before[start : start + PAGE], after[start : start + PAGE]
        if old != new:
            pairs = zip(struct.iter_unpack("<Q", old), struct.iter_unpack("<Q", new), strict=True)
            yield from ((was, now) for (was,), (now,) in pairs if was != now)


def _inward(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield each word as it was and as it is, from the outermost inward."""
    for end in range(len(before), 0, -PAGE):
        start = max(0, end - PAGE)
        old, new = ([*struct.iter_unpack("<Q", stack[start:end])] for stack in (before, after))
        yield from ((was, now) for (was,), (now,) in zip(reversed(old), reversed(new), strict=True))


def _is_link(core: Core, word: int) -> bool:
    if not word:
        return True
    load = core.load_at(word)
    if load is None:
        return word in STACKS
    return load.writable


def _with(saved: Saved, since: SinceFirst) -> Saved:
    return Saved(registers=saved.registers, coroutine=msgspec.structs.replace(saved.coroutine, since_first=since))
