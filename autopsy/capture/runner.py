"""Runs the steps in their order, each in a child that may be abandoned, and lets no error past itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import LeftBehind, OutcomeName, StepRecord
from autopsy.bundle.vm_end import VmEnd
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.preview import Preview
from autopsy.capture.staging.staging import SETTLE_SECONDS, Staging
from autopsy.capture.step import Collected, Deadline, Failed, Impact, Options, Outcome, Scene, Skipped, Step, TimedOut
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, in_words, spawn
from autopsy.target.target import Target

INTERRUPTED = "interrupted by a person"
SHARE = 0.06  # of the budget, which each later step is sure of
LEAST_GAP = 2.0  # seconds to the second look that a first judgement is worth making in
LEAST_SECONDS = 0.2  # with less left of the budget a step is not begun


class Watcher(Protocol):
    """Whoever shows the steps to a person; every method returns at once.

    `curious` says that somebody watches who would know what is known before the end.
    """

    curious: bool

    def began(self, step: Step) -> None:
        """Take note that a step began."""

    def ended(self, record: StepRecord) -> None:
        """Take note of how a step went."""

    def tick(self) -> None:
        """Refresh what is shown; called about ten times a second."""

    def tell(self, words: str) -> None:
        """Show some words beside what is going on: what is known so far, or how a kill goes."""


class Interrupted(Exception):
    """A person asked us to stop: the step at hand is ended, the rest are skipped, what is there is sealed."""


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: Outcome
    left_behind: tuple[LeftBehind, ...] = ()
    interrupted: bool = False


class _Wire(msgspec.Struct, frozen=True):
    """An outcome on its way through the pipe."""

    kind: OutcomeName
    why: str
    stop_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one capture runs with.

    `note` is given all records so far before they are made durable. `meanwhile` is called once, in our own process,
    while the longest step's child works. `judge` returns what the evidence so far comes to, in a child, for whoever is
    curious while the second look waits.
    """

    target: Target
    watch: EndWatch
    options: Options
    staging: Staging
    budget: Deadline
    watcher: Watcher
    note: Callable[[tuple[StepRecord, ...]], None]
    meanwhile: Callable[[], None]
    judge: Callable[[], bytes] | None = None


def run(plan: tuple[Step, ...], it: Run) -> tuple[StepRecord, ...]:
    """Run every step and return how each went.

    Never raises: a step that cannot even be begun is Failed or Skipped.
    """
    records: list[StepRecord] = []
    interrupted = False
    share = it.budget.left() * SHARE
    for place, step in enumerate(plan, start=1):
        it.watcher.began(step)
        start = time.monotonic_ns()
        it.watch.began(step.name)
        end = it.watch.conclude(it.staging.work)
        if interrupted:
            answer = _Answer(Skipped(INTERRUPTED), interrupted=True)
        elif end is not None and not step.without_vm:
            answer = _Answer(Skipped(_ended(end)))
        elif step.impact is Impact.MAY_HARM and not _all_durable(it):
            answer = _Answer(Skipped("what was taken so far could be stored nowhere yet"))
        elif it.budget.left() < LEAST_SECONDS:
            answer = _Answer(Skipped("the budget is spent"))
        else:
            try:
                answer = _run(step, it, kept=share * (len(plan) - place))
            except Interrupted:
                interrupted = True
                answer = _Answer(Failed(INTERRUPTED), interrupted=True)
        it.watch.conclude(it.staging.work)
        record = _record(step, answer, start)
        records.append(record)
        it.note(tuple(records))
        if not interrupted and not isinstance(answer.outcome, Skipped):
            it.staging.settle()
        it.watcher.ended(record)
    it.staging.settled(max(1.0, min(SETTLE_SECONDS, it.budget.left())))
    return tuple(records)


def _all_durable(it: Run) -> bool:
    """Wait until all that was taken so far is on a disk, and return whether it is."""
    it.staging.settled(max(1.0, min(SETTLE_SECONDS, it.budget.left())))
    return bool(it.staging.places)


def _run(step: Step, it: Run, kept: float) -> _Answer:
    """Run one step; `kept` seconds of the budget are the later steps' own, however long this one hangs."""
    seconds = min(step.deadline, max(LEAST_SECONDS, it.budget.left() - kept))
    it.staging.folder(step.name)
    scene = Scene(it.target, it.options, it.staging.work, step.name, Deadline(seconds))
    preview = _preview(step, it)
    try:
        child = spawn(lambda: msgspec.json.encode(_wire(_collect(step, scene))))
        return _Answer(_from_wire(collect(child, seconds + LEAST_SECONDS, _tick(step, it, preview))))
    except ChildTimedOut as error:
        left = (error.left_behind,) if error.left_behind else ()
        return _Answer(TimedOut(f"no end within {seconds:.1f} s{in_words(error.left_behind)}"), left)
    except ChildFailed as error:
        return _Answer(Failed(str(error)))
    finally:
        if preview is not None:
            preview.close()


def _preview(step: Step, it: Run) -> Preview | None:
    wanted = step.name == layout.SECOND_EXPOSURE and it.watcher.curious and it.options.gap >= LEAST_GAP
    return Preview(it.judge) if wanted and it.judge is not None else None


def _ended(end: VmEnd) -> str:
    return f"the VM ended after {end.after}"


def _tick(step: Step, it: Run, preview: Preview | None) -> Callable[[], None]:
    """Return what to do ten times a second while a step's child works; beside the longest step, `meanwhile` once."""
    ahead = [it.meanwhile] if step.name == layout.GDB_THREADS else []

    def tick() -> None:
        it.watch.look()
        it.watcher.tick()
        if preview is not None and (words := preview.look()):
            it.watcher.tell(f"so far: {words}")
        if ahead:
            ahead.pop()()

    return tick


def _collect(step: Step, scene: Scene) -> Outcome:
    try:
        return step.collect(scene)
    except Exception as error:  # noqa: BLE001 - a collector's bug must not cost the next step its evidence
        if scene.deadline.expired():
            return TimedOut(f"no end within its deadline ({type(error).__name__}: {error})")
        return Failed(f"{type(error).__name__}: {error}")


def _wire(outcome: Outcome) -> _Wire:
    match outcome:
        case Collected(why, stop_ns):
            return _Wire("Collected", why, stop_ns)
        case TimedOut(why):
            return _Wire("TimedOut", why, 0)
        case Failed(why):
            return _Wire("Failed", why, 0)
        case Skipped(why):
            return _Wire("Skipped", why, 0)


def _from_wire(data: bytes) -> Outcome:
    wire = msgspec.json.decode(data, type=_Wire)
    match wire.kind:
        case "Collected":
            return Collected(wire.why, wire.stop_ns)
        case "TimedOut":
            return TimedOut(wire.why)
        case "Failed":
            return Failed(wire.why)
        case "Skipped":
            return Skipped(wire.why)


def _record(step: Step, answer: _Answer, start: int) -> StepRecord:
    wire = _wire(answer.outcome)
    return StepRecord(
        name=step.name,
        impact=step.impact.value,
        outcome=wire.kind,
        why=wire.why,
        stop_ns=wire.stop_ns,
        start_ns=start,
        end_ns=time.monotonic_ns(),
        left_behind=answer.left_behind,
        interrupted=answer.interrupted,
    )
