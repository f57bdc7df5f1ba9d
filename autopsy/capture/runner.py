"""Runs the steps in their order, each in a child that may be abandoned, and lets no error past itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import field
from functools import partial
from importlib import import_module
from typing import Protocol

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import LeftBehind, StepRecord
from autopsy.bundle.vm_end import VmEnd
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.pace import STARVED, Pace, Thinned, spent, thin_out
from autopsy.capture.preview import Preview
from autopsy.capture.staging.staging import SETTLE_SECONDS, Staging
from autopsy.capture.step import Deadline, Failed, Impact, Options, Outcome, Scene, Skipped, Step, TimedOut
from autopsy.capture.wire import OutcomeWire, as_wire, from_wire
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.forking import Child, has_answered, in_words
from autopsy.linux.tasks.forking import end as end_child
from autopsy.target.target import Target

INTERRUPTED = "interrupted by a person"
SHARE = 0.06  # of the budget, which each later step is sure of
KEPT_SHARE = 0.7  # of what is left, which the later steps' expected work can keep from one before them
SEALS_SHARE = 0.5  # of what is left, which the seal of a large core can keep from the steps
STRETCH = 4.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one capture runs with.

    `note` is given all records so far before they are made durable. `meanwhile` are modules that are loaded one after
    another, in our own process, while the steps' children work; `unhurried` are those that would slow down what a
    hurried capture waits for: they are loaded beside its second look, else beside a step that was begun before its
    turn. A name behind a colon is a function that is called.
    `judge` returns what the evidence so far comes to, in a child, for whoever is curious while the second look waits.
    `reserve` are the seconds that are kept behind the budget for diagnosis, report and seal: whatever they take, where
    it is not told.
    """

    target: Target
    watch: EndWatch
    options: Options
    staging: Staging
    budget: Deadline
    watcher: Watcher
    note: Callable[[tuple[StepRecord, ...]], None]
    meanwhile: tuple[str, ...] = ()
    unhurried: tuple[str, ...] = ()
    judge: Callable[[], bytes] | None = None
    reserve: float = math.inf
    pace: Pace = field(default_factory=Pace)

    def left(self) -> float:
        """Return the seconds that the steps have left: the core may have become so large that its seal takes more."""
        try:
            core = (self.staging.work / layout.CORE).stat().st_blocks * 512
        except OSError:
            core = 0
        left = self.budget.left()
        return left - min(left * SEALS_SHARE, max(0.0, self.pace.tail(core) - self.reserve))


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step's child at work: since when, and until when at most."""

    child: Child
    start_ns: int
    deadline: Deadline
    seconds: float
    behind: bool
    look: Callable[[], None]


def run(plan: tuple[Step, ...], capture: Run) -> tuple[StepRecord, ...]:
    """Run every step and return how each went. What the last one took may not be durable yet: see Staging.settled.

    Never raises: a step that cannot even be begun is Failed or Skipped.
    """
    records: list[StepRecord] = []
    interrupted = False
    share = capture.budget.left() * SHARE
    capture.pace.look()
    ahead, unhurried = list(reversed(capture.meanwhile)), list(reversed(capture.unhurried))
    early: dict[str, _Begun] = {}
    for place, step in enumerate(plan, start=1):
        capture.watcher.began(step)
        begun = early.pop(step.name, None)
        if place == len(plan) or step.name == layout.SECOND_EXPOSURE or (begun and capture.options.gap >= LEAST_GAP):
            ahead, unhurried = [*unhurried, *ahead], []
        start = time.monotonic_ns() if begun is None else begun.start_ns
        capture.watch.began(step.name)
        end = capture.watch.conclude(capture.staging.work)
        thin = thin_out(plan[place - 1 :], capture.pace, capture.left(), (step.name,) if begun else early)
        if (refusal := _refusal(step, capture, end, thin, interrupted=interrupted)) is not None:
            answer = refusal if begun is None else _taken_already(begun, refusal)
        else:
            try:
                answer = _run(
                    step,
                    capture,
                    begun,
                    ahead,
                    partial(_begin, step, capture, _kept(plan[place:], capture, share), thin),
                )
            except Interrupted:
                interrupted = True
                answer = _Answer(Failed(INTERRUPTED), interrupted=True)
        capture.watch.conclude(capture.staging.work)
        record = _record(step, answer, start)
        records.append(record)
        capture.note(tuple(records))
        if not interrupted and not isinstance(answer.outcome, Skipped):
            capture.staging.settle()
        capture.watcher.ended(record)
        capture.pace.look()
        if not interrupted and len(os.sched_getaffinity(0)) > 1:
            early |= dict(_begin_early(step, plan[place:], capture, share))
    return tuple(records)


def _taken_already(begun: _Begun, refusal: _Answer) -> _Answer:
    """Return what a step that was begun beside others has taken, else why it is not waited for; it is ended."""
    if not has_answered(begun.child):
        end_child(begun.child)
        return refusal
    with suppress(ChildTimedOut, ChildFailed):
        wire = msgspec.json.decode(collect(begun.child, LEAST_SECONDS), type=OutcomeWire)
        if wire.kind == "Collected":
            return _Answer(from_wire(wire))
    return refusal


def _kept(later: tuple[Step, ...], capture: Run, share: float) -> float:
    """Return the seconds that are the later steps' own, however long one before them hangs."""
    work = capture.pace.slowness * sum(step.cpu for step in later) if capture.pace.slowness >= STARVED else 0.0
    return max(share * len(later), min(KEPT_SHARE * capture.left(), work))


def _refusal(step: Step, capture: Run, end: VmEnd | None, thin: Thinned, *, interrupted: bool) -> _Answer | None:
    """Return why a step is not tried, None where it is."""
    if interrupted:
        return _Answer(Skipped(INTERRUPTED), interrupted=True)
    if end is not None and not step.without_vm:
        return _Answer(Skipped(_ended(end)))
    if step.impact is Impact.MAY_HARM and not _all_durable(capture):
        return _Answer(Skipped("what was taken so far could be stored nowhere yet"))
    if capture.left() < LEAST_SECONDS:
        return _Answer(Skipped("the budget is spent"))
    if step.name in thin.out:
        return _Answer(Skipped(capture.pace.in_words()))
    return None


def _all_durable(capture: Run) -> bool:
    """Wait until all that was taken so far is on a disk, and return whether it is."""
    capture.staging.settled(max(1.0, min(SETTLE_SECONDS, capture.budget.left())))
    return bool(capture.staging.places) and not capture.staging.lagging


def _begin(step: Step, capture: Run, kept: float, thin: Thinned) -> _Begun:
    """Begin one step; `kept` seconds of the budget are the later steps' own, however long this one hangs.

    On a starved host it has more time than its deadline, for it gets less done in that.

    Raises:
        ChildFailed: there can be no process for it.
    """
    stretch = min(STRETCH, max(1.0, capture.pace.slowness / STARVED))
    seconds = min(step.deadline * stretch, max(LEAST_SECONDS, capture.left() - kept))
    capture.staging.folder(step.name)
    start, deadline = time.monotonic_ns(), Deadline(seconds)
    thinned = capture.pace.in_words() if step.name in thin.lean else ""
    scene = Scene(
        capture.target, capture.options, capture.staging.work, step.name, deadline, thinned, capture.pace.may_wait()
    )
    child = spawn(lambda: _told(as_wire(_collect(step, scene))))
    look = capture.pace.watch_over(child.pid) if scene.behind else _nothing
    return _Begun(child, start, deadline, seconds, scene.behind, look)


def _begin_early(ended: Step, later: tuple[Step, ...], capture: Run, share: float) -> Iterator[tuple[str, _Begun]]:
    """Begin what need only wait for the step that has ended. Where that cannot be, it is begun in its turn."""
    for step in later:
        if step.after == ended.name and capture.left() >= LEAST_SECONDS:
            thin = thin_out(later, capture.pace, capture.left())
            if step.name not in thin.out and (capture.watch.end is None or step.without_vm):
                others = tuple(other for other in later if other is not step)
                with suppress(ChildFailed):
                    yield step.name, _begin(step, capture, _kept(others, capture, share), thin)


def _run(step: Step, capture: Run, begun: _Begun | None, ahead: list[str], begin: Callable[[], _Begun]) -> _Answer:
    """Run one step to its end, or wait for the end of one that has begun."""
    seconds = 0.0
    preview = _preview(step, capture)
    try:
        begun = begun or begin()
        seconds = begun.seconds
        left = begun.deadline.left() + LEAST_SECONDS
        wire = msgspec.json.decode(collect(begun.child, left, _tick(begun, capture, ahead, preview)), type=OutcomeWire)
        if not begun.behind:
            capture.pace.take(wire.ran_ns, wire.waited_ns)
        return _Answer(from_wire(wire))
    except ChildTimedOut as error:
        left_behind = (error.left_behind,) if error.left_behind else ()
        return _Answer(TimedOut(f"no end within {seconds:.1f} s{in_words(error.left_behind)}"), left_behind)
    except ChildFailed as error:
        return _Answer(Failed(str(error)))
    finally:
        if preview is not None:
            preview.close()


def _preview(step: Step, capture: Run) -> Preview | None:
    if capture.pace.slowness >= STARVED:
        return None
    wanted = step.name == layout.SECOND_EXPOSURE and capture.watcher.curious and capture.options.gap >= LEAST_GAP
    return Preview(capture.judge) if wanted and capture.judge is not None else None


def _ended(end: VmEnd) -> str:
    return f"the VM ended after {end.after}"


def _tick(begun: _Begun, capture: Run, ahead: list[str], preview: Preview | None) -> Callable[[], None]:
    """Return what to do ten times a second while a step's child works; what is `ahead` is loaded as long as it does."""

    def tick() -> None:
        begun.look()
        capture.watch.look()
        capture.watcher.tick()
        if preview is not None and (words := preview.look()):
            capture.watcher.tell(f"so far: {words}")
        while ahead and not has_answered(begun.child):
            with suppress(ImportError):  # whoever needs it will say so
                _load(ahead.pop())

    return tick


def _load(name: str) -> None:
    module, _, function = name.partition(":")
    loaded = import_module(module)
    if function:
        getattr(loaded, function)()


def _collect(step: Step, scene: Scene) -> Outcome:
    try:
        return step.collect(scene)
    except Exception as error:  # noqa: BLE001 - a collector's bug must not cost the next step its evidence
        if scene.deadline.expired():
            return TimedOut(f"no end within its deadline ({type(error).__name__}: {error})")
        return Failed(f"{type(error).__name__}: {error}")


def _nothing() -> None:
    """Look at nothing."""


def _told(wire: OutcomeWire) -> bytes:
    """Return what the child says of its step, and how the host let it work."""
    ran_ns, waited_ns = spent()
    return msgspec.json.encode(msgspec.structs.replace(wire, ran_ns=ran_ns, waited_ns=waited_ns))


def _record(step: Step, answer: _Answer, start: int) -> StepRecord:
    wire = as_wire(answer.outcome)
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
