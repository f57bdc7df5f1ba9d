"""The step second-exposure: the same look again after a gap, because what did not move is stuck."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import FreezeRecord
from autopsy.capture.freeze import ring_words
from autopsy.capture.freeze import step as freeze
from autopsy.capture.gdb import step as gdb
from autopsy.capture.proc import step as proc
from autopsy.capture.qmp import step as qmp
from autopsy.capture.scratch import scratch
from autopsy.capture.step import Collected, Failed, Outcome, Scene, Skipped, TimedOut
from autopsy.capture.wire import OutcomeWire, as_wire, from_wire
from autopsy.errors import ExaminationFailed
from autopsy.examine.boxed import begun_boxed
from autopsy.examine.second_exposure import examine_again
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.behind import behind_others
from autopsy.linux.tasks.forking import Child, end
from autopsy.target.target import ends_within

PAUSE_SECONDS = 0.01
# What the search of the first snapshot reads of the evidence.
AHEAD = (
    *(layout.evidence(layout.WITNESS, file) for file in (layout.MAPS, layout.POLLS, layout.FDS)),
    layout.evidence(layout.PROC_FDS, layout.FDS),
    layout.evidence(layout.FREEZE, layout.FREEZE_RECORD),
    layout.evidence(layout.GDB_THREADS, layout.MODULES),
)
WITNESSED = re.compile(rb"^==> clock/end \(\d+ bytes\) <==\n(\d{1,18})$", re.MULTILINE)  # of tasks.txt
AHEAD_SECONDS = 1.0  # of the second snapshot, the first is searched once more: for as long its memory is needed twice
RESERVE_SECONDS = 3.0  # for the snapshot itself, when the budget cuts the gap short


def expose(scene: Scene) -> Outcome:
    """Wait until the gap has passed, then take threads, memory and the harmless QMP answers once more."""
    first = _first(scene)
    witnessed = _witnessed(scene, first)
    _wait(scene, witnessed, less=AHEAD_SECONDS)
    with new_core(scene) as core, _comparison(scene, core) as compare:
        _wait(scene, witnessed)
        threads = proc.tasks_again(scene)
        _wait_for_ring_words(scene)
        waited = _wait(scene, first)
        with _beside(partial(proc.fds_again, scene), scene) as descriptors:  # that is no part of the VM's memory
            memory = freeze.expose_again(scene, core)
            seen = descriptors()
        with _beside(partial(qmp.ask_again, scene), scene) as monitor:  # what is compared are frozen bytes
            coroutines = compare()
            parts = (
                *(("threads", threads), ("memory", memory), ("descriptors", seen)),
                *(("monitor", monitor()), ("coroutines", coroutines)),
            )
    ring_words.collect_ring_words(scene)
    stop_ns = sum(outcome.stop_ns for _, outcome in parts if isinstance(outcome, Collected))
    summary = [f"{waited:.1f} s after the first"]
    summary += [words for name, outcome in parts if (words := _words(name, outcome))]
    if not any(isinstance(outcome, Collected) for _, outcome in parts):
        return Failed("; ".join(summary))
    return Collected("; ".join(summary), stop_ns)


@contextmanager
def _beside(work: Callable[[], Outcome], scene: Scene) -> Iterator[Callable[[], Outcome]]:
    """Have a child do something meanwhile; what is yielded waits for it, and says how it went."""

    def answer() -> bytes:
        return msgspec.json.encode(as_wire(work()))

    try:
        child: Child | None = spawn(answer)
    except ChildFailed:
        child = None

    def outcome() -> Outcome:
        nonlocal child
        if child is None:
            return work()
        begun, child = child, None
        try:
            return from_wire(msgspec.json.decode(collect(begun, scene.deadline.left()), type=OutcomeWire))
        except ChildTimedOut as error:
            return TimedOut(str(error))
        except (ChildFailed, msgspec.DecodeError) as error:
            return Failed(str(error))

    try:
        yield outcome
    finally:
        if child is not None:
            end(child)


@contextmanager
def new_core(scene: Scene) -> Iterator[int]:
    """Make the second core's file: whoever is to read it has it open before it is written. An empty one goes again."""
    with private.held(scene.folder) as folder, private.new(layout.CORE, below=folder) as stream:
        try:
            yield stream.fileno()
        finally:
            if not os.fstat(stream.fileno()).st_size:
                os.unlink(layout.CORE, dir_fd=folder)


@contextmanager
def _comparison(scene: Scene, second_core: int) -> Iterator[Callable[[], Outcome]]:
    """Have the first core searched before there is a second one; what is yielded lays the two over each other."""
    if scene.thinned:
        yield lambda: Skipped(f"not compared, {scene.thinned}; `autopsy examine BUNDLE` does it")
        return
    with ExitStack() as stack:
        try:
            compare = stack.enter_context(_begun(scene, second_core))
        except (ExaminationFailed, OSError) as error:  # that is no reason to go without the second snapshot
            failed = Failed(str(error))
            yield lambda: failed
            return

        def outcome() -> Outcome:
            if not os.fstat(second_core).st_size:
                return Skipped("there is no second core")
            try:
                with behind_others(wanted=scene.behind):
                    return Collected(compare())
            except ExaminationFailed as error:
                return Failed(str(error))

        yield outcome


@contextmanager
def _begun(scene: Scene, second_core: int) -> Iterator[Callable[[], str]]:
    with (
        scratch(scene) as folder,
        open(f"/proc/self/fd/{second_core}", "rb", buffering=0) as second,
        gdb.frozen(scene, scene.staging / layout.CORE, folder, second.fileno()) as frozen,
        ExitStack() as stack,
    ):
        given = replace(frozen, second_is_there=lambda: os.fstat(second_core).st_size > 0)
        with behind_others(wanted=scene.behind):
            compare = stack.enter_context(begun_boxed(given, examine_again, ahead=AHEAD))
        yield compare


def _first(scene: Scene) -> float:
    """Return when the first snapshot was taken, in seconds of CLOCK_MONOTONIC."""
    try:
        return (
            msgspec.json.decode(scene.earlier(layout.FREEZE, layout.FREEZE_RECORD), type=FreezeRecord).frozen_at_ns
            / 1e9
        )
    except msgspec.DecodeError:  # the first was not frozen; its threads were looked at all the same, just now
        return time.monotonic()


def _witnessed(scene: Scene, otherwise: float) -> float:
    """Return when the threads had been looked at: before the first snapshot, and so they may be before the second."""
    seen = WITNESSED.search(scene.earlier(layout.WITNESS, layout.TASKS))
    return min(int(seen[1]) / 1e9, otherwise) if seen else otherwise


def _wait(scene: Scene, since: float, less: float = 0.0) -> float:
    """Sleep until `gap` seconds after that moment, or `less`, and return how many seconds after it now is.

    Nobody waits for a VM that has ended.
    """
    due = since + scene.options.gap - less - time.monotonic()
    ends_within(scene.target, max(0.0, min(due, scene.deadline.left() - RESERVE_SECONDS)))
    return time.monotonic() - since


def _wait_for_ring_words(scene: Scene) -> None:
    """Wait until the words of the rings were read that are to be of before the second snapshot, where there are any."""
    if scene.beside is None:
        return
    first = replace(scene, step=layout.GDB_THREADS)
    while not scene.deadline.expired() and not ring_words.are_settled(first):
        if scene.beside.has_ended(PAUSE_SECONDS):
            return


def _words(name: str, outcome: Outcome) -> str:
    match outcome:
        case Collected(why):
            return f"{name}: {why}" if why else ""
        case TimedOut(why):
            return f"{name} timed out: {why}"
        case Failed(why):
            return f"{name} failed: {why}"
        case Skipped(why):
            return f"{name} skipped: {why}"
