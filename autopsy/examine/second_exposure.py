"""Lays the second snapshot over the first, and says of each coroutine whether it moved in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, Frame
from autopsy.errors import ExaminationFailed
from autopsy.examine import previous
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import compare, find, stored
from autopsy.examine.coroutines.find import Saved
from autopsy.examine.gdb.unwind import Parked, unwind, with_frames
from autopsy.examine.heap import run, virtqueues
from autopsy.examine.threads import poll_sets

HEAP_SECONDS = 5.0
GDB_SECONDS = 5.0
IN_WORDS = {"stuck": "where they were"}


def examine_again(frozen: Frozen) -> str:
    """Write coroutines.json once more, with `since_first` and the frames that were unwound, and with DWARF heap.json.

    Raises:
        ExaminationFailed: one of the snapshots cannot be read.
    """
    if frozen.second_core is None:
        raise ExaminationFailed("second snapshot", "there is no second core", remedy="see the outcome of freeze")
    try:
        core = Core(frozen.core)
        second = Core.over(core, Core(frozen.second_core))
    except CoreError as error:
        raise ExaminationFailed("second snapshot", str(error), remedy="see the outcome of freeze") from error
    symbols = Symbols(core, frozen)
    walking = run.start(frozen, symbols, min(HEAP_SECONDS, frozen.seconds))
    compared = compare.compare(core, find.find_coroutines(core, symbols), second, find.find_coroutines(second, symbols))
    unwound = _unwound(frozen)
    known = previous.read_previous(frozen.read, layout.SECOND_EXPOSURE)
    tracking = compare.track_requests(symbols)
    current = [_with_frames(_with_request(core, second, saved, tracking), unwound) for saved in compared.first]
    current += _newcomers(frozen, second, symbols, compared.new)
    coroutines = known.best_coroutines(current, blind=symbols.main is None or symbols.main.file is None)
    frozen.write(layout.COROUTINES, stored.as_text(coroutines))
    poll_sets.write(frozen)
    with suppress(CoreError, OSError):  # the coroutines are written already
        virtqueues.write(core, second, symbols, frozen.read, frozen.write)
    if walking.child is not None:  # without debug information there is nothing to compare
        with suppress(OSError):  # the coroutines are written already
            run.finish(walking, earlier=known)
    counts = Counter(coroutine.since_first for coroutine in coroutines if coroutine.state == "parked")
    # The monitor's own stands still on every healthy VM: it is the analyzer that says "stuck".
    return ", ".join(f"{count} {IN_WORDS.get(word, word)}" for word, count in sorted(counts.items()))


def _newcomers(frozen: Frozen, second: Core, symbols: Symbols, new: tuple[Saved, ...]) -> list[Coroutine]:
    """Return the coroutines that were not parked before, unwound from the second snapshot where gdb can be had."""
    if not new:
        return []
    parked = [Parked(second, saved) for saved in new]
    frames: Mapping[int, tuple[Frame, ...]] = {}
    with TemporaryDirectory(dir=frozen.scratch) as scratch, suppress(ExaminationFailed):
        ends_at = time.monotonic() + min(GDB_SECONDS, frozen.seconds)
        frames = unwind(
            second, symbols, parked, comms={}, scratch=Path(scratch), ends_at=ends_at, with_threads=False
        ).coroutines
    return [with_frames(saved.coroutine, frames, symbols) for saved in new]


def _unwound(frozen: Frozen) -> dict[int, Coroutine]:
    try:
        known = stored.read_back(frozen.read(layout.evidence(layout.GDB_THREADS, layout.COROUTINES)))
    except msgspec.DecodeError:
        return {}
    return {coroutine.address: coroutine for coroutine in known}


def _with_frames(now: Coroutine, unwound: dict[int, Coroutine]) -> Coroutine:
    """Return the coroutine with its frames, where it still stands where they were unwound."""
    known = unwound.get(now.address)
    if known is None or (known.pc, known.sp) != (now.pc, now.sp):
        return now
    return msgspec.structs.replace(now, frames=known.frames, line=known.line)


def _with_request(core: Core, second: Core, saved: Saved, tracking: Sequence[range]) -> Coroutine:
    """Return a coroutine that moved with whether its request is still the same, as far as its stack tells."""
    now = saved.coroutine
    if now.since_first != "moved" or not compare.is_same_request(core, second, saved, tracking):
        return now
    return msgspec.structs.replace(now, same_request=True)
