"""The step second-exposure: the same look again after a gap, because what did not move is stuck."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from autopsy.examine.boxed import examine_boxed
from autopsy.examine.second_exposure import examine_again
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.behind import behind_others
from autopsy.linux.tasks.forking import Child, end
from autopsy.target.target import ends_within

PAUSE_SECONDS = 0.01
WITNESSED = re.compile(rb"^==> clock/end \(\d+ bytes\) <==\n(\d{1,18})$", re.MULTILINE)  # of tasks.txt
RESERVE_SECONDS = 3.0  # for the snapshot itself, when the budget cuts the gap short


def expose(scene: Scene) -> Outcome:
    """Wait until the gap has passed, then take threads, memory and the harmless QMP answers once more."""
    first = _first(scene)
    _wait(scene, _witnessed(scene, first))
    threads = proc.tasks_again(scene)
    _wait_for_ring_words(scene)
    waited = _wait(scene, first)
    with _beside(partial(proc.fds_again, scene), scene) as descriptors:  # that is no part of the VM's memory
        memory = freeze.expose_again(scene)
        seen = descriptors()
    with _beside(partial(qmp.ask_again, scene), scene) as monitor:  # what is compared are frozen bytes
        coroutines = _compare(scene)
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


def _compare(scene: Scene) -> Outcome:
    second_core = scene.folder / layout.CORE
    if scene.thinned:
        return Skipped(f"not compared, {scene.thinned}; `autopsy examine BUNDLE` does it")
    if not second_core.exists():
        return Skipped("there is no second core")
    try:
        with scratch(scene) as folder:
            core = scene.staging / layout.CORE
            scene.wait_for_other()  # whose frames are told again of what has not moved
            with gdb.frozen(scene, core, folder, second_core) as frozen, behind_others(wanted=scene.behind):
                return Collected(examine_boxed(frozen, examine_again))
    except ExaminationFailed as error:
        return Failed(str(error))


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


def _wait(scene: Scene, since: float) -> float:
    """Sleep until `gap` seconds after that moment and return how many seconds after it now is.

    Nobody waits for a VM that has ended.
    """
    due = since + scene.options.gap - time.monotonic()
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
