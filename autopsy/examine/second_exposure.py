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
from autopsy.examine.gdb.printed import EarlyGdb
from autopsy.examine.gdb.unwind import Parked, unwind, with_frames
from autopsy.examine.heap import run, virtqueues
from autopsy.examine.threads import poll_sets

HEAP_SECONDS = 6.0  # one of which may pass before the second snapshot is there
GDB_SECONDS = 5.0
LED_NOWHERE = 1  # frame: what is saved of a coroutine that was awake is where it slept last, and its stack is not
IN_WORDS = {"stuck": "where they were"}
THERE_IS_NONE = "there is no second core"


def examine_again(frozen: Frozen) -> str:
    """Write coroutines.json once more, with `since_first` and the frames that were unwound, and with DWARF heap.json.

    Raises:
        ExaminationFailed: one of the snapshots cannot be read.
    """
    if frozen.second_core is None:
        raise _unreadable(THERE_IS_NONE)
    try:
        core = Core(frozen.core)
    except CoreError as error:
        raise _unreadable(str(error)) from error
    symbols = Symbols(core, frozen)
    walking = run.start(frozen, symbols, min(HEAP_SECONDS, frozen.seconds), second_is_to_come=True)
    try:
        first = find.find_coroutines(core, symbols)
        if not frozen.second_is_there():
            raise _unreadable(THERE_IS_NONE)
        second = Core.over(core, Core(frozen.second_core))
    except CoreError as error:
        run.give_up(walking)
        raise _unreadable(str(error)) from error
    except ExaminationFailed:
        run.give_up(walking)
        raise
    run.go_on(walking)
    later = find.find_coroutines(second, symbols)
    compared = compare.compare(core, first, second, later)
    awake = {saved.coroutine.address for saved in first if saved.coroutine.state == "running"}
    requests = _with_requests(core, second, symbols, compared, awake)
    try:  # these need nothing of what gdb told, which may be at work still
        poll_sets.write(frozen)
        with suppress(CoreError, OSError):  # the coroutines are told nevertheless
            virtqueues.write(core, second, symbols, frozen.read, frozen.write)
    finally:
        known = previous.read_previous(frozen.read, layout.SECOND_EXPOSURE)
        current = _with_frames(frozen, second, symbols, requests, later)
        coroutines = known.best_coroutines(current, blind=symbols.main is None or symbols.main.file is None)
        frozen.write(layout.COROUTINES, stored.as_text(coroutines))
    if walking.child is not None:  # without debug information there is nothing to compare
        with suppress(OSError):  # the coroutines are written already
            run.finish(walking, earlier=known)
    counts = Counter(coroutine.since_first for coroutine in coroutines if coroutine.state == "parked")
    # The monitor's own stands still on every healthy VM: it is the analyzer that says "stuck".
    return ", ".join(f"{count} {IN_WORDS.get(word, word)}" for word, count in sorted(counts.items()))


def _unreadable(why: str) -> ExaminationFailed:
    return ExaminationFailed("second snapshot", why, remedy="see the outcome of freeze")


def _with_requests(
    core: Core, second: Core, symbols: Symbols, compared: compare.Compared, awake: set[int]
) -> tuple[Coroutine, ...]:
    """Return the coroutines with whether what moved, or was awake at first, carries the same request still.

    What came out of the pool has none that is the same: its last one lies on its stack as it left it.
    """
    tracking = compare.track_requests(symbols)

    def with_request(saved: Saved) -> Coroutine:
        coroutine = saved.coroutine
        may = coroutine.since_first == "moved" or (coroutine.since_first == "new" and coroutine.address in awake)
        same = may and compare.is_same_request(core, second, saved, tracking)
        return msgspec.structs.replace(coroutine, same_request=same)

    return tuple(with_request(saved) for saved in (*compared.first, *compared.new))


def _with_frames(
    frozen: Frozen, second: Core, symbols: Symbols, current: Sequence[Coroutine], later: Sequence[Saved]
) -> list[Coroutine]:
    """Return the coroutines with their frames, where they still stand where they were unwound at first.

    What was not parked at first, or was awake under the eyes of who looked, is unwound from the second snapshot.
    """
    unwound = _unwound(frozen)
    current = [_with_frames_of(coroutine, unwound.get(coroutine.address)) for coroutine in current]
    wanted = {
        coroutine.address
        for coroutine in current
        if coroutine.since_first == "new" or (coroutine.same_request and len(coroutine.frames) <= LED_NOWHERE)
    }
    parked = [saved for saved in later if saved.coroutine.address in wanted and saved.coroutine.state == "parked"]
    frames = _unwind(frozen, second, symbols, parked)
    return [with_frames(coroutine, frames, symbols) for coroutine in current]


def _unwind(frozen: Frozen, second: Core, symbols: Symbols, parked: Sequence[Saved]) -> Mapping[int, tuple[Frame, ...]]:
    """Return the frames in the second snapshot by coroutine, where gdb can be had."""
    if not parked:
        return {}
    with (
        TemporaryDirectory(dir=frozen.scratch) as scratch,
        suppress(ExaminationFailed),
        EarlyGdb(Path(scratch), without="") as early,
    ):
        ends_at = time.monotonic() + min(GDB_SECONDS, frozen.seconds)
        located = [Parked(second, saved) for saved in parked]
        return unwind(
            second, symbols, located, comms={}, scratch=Path(scratch), ends_at=ends_at, with_threads=False, early=early
        ).coroutines
    return {}


def _unwound(frozen: Frozen) -> dict[int, Coroutine]:
    try:
        known = stored.read_back(frozen.read(layout.evidence(layout.GDB_THREADS, layout.COROUTINES)))
    except msgspec.DecodeError:
        return {}
    return {coroutine.address: coroutine for coroutine in known}


def _with_frames_of(now: Coroutine, known: Coroutine | None) -> Coroutine:
    if known is None or (known.pc, known.sp) != (now.pc, now.sp):
        return now
    return msgspec.structs.replace(now, frames=known.frames, line=known.line)
