"""Runs the steps in their order, each in a child that may be abandoned, and lets no error past itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import LeftBehind, StepRecord
from autopsy.bundle.vm_end import VmEnd
from autopsy.capture.beginning import LEAST_SECONDS, BegunStep, EarlySteps, begin, kept_for
from autopsy.capture.pace import STARVED, Thinned, thin_out
from autopsy.capture.preview import Preview
from autopsy.capture.run import Interrupted, Run
from autopsy.capture.staging.staging import SETTLE_SECONDS
from autopsy.capture.step import Failed, Impact, Outcome, Skipped, Step, TimedOut
from autopsy.capture.wire import OutcomeWire, as_wire, from_wire
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect
from autopsy.linux.tasks.forking import TICK_SECONDS, has_answered, in_words
from autopsy.linux.tasks.forking import end as end_child

INTERRUPTED = "interrupted by a person"
SHARE = 0.06  # of the budget, which each later step is sure of
SOON = 0.02  # seconds between two looks whether a step can be begun beside another
LEAST_GAP = 2.0  # seconds to the second look that a first judgement is worth making in


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: Outcome
    left_behind: tuple[LeftBehind, ...] = ()
    interrupted: bool = False


def run(plan: tuple[Step, ...], capture: Run) -> tuple[StepRecord, ...]:
    """Run every step and return how each went. What the last one took may not be durable yet: see Staging.settled.

    Never raises: a step that cannot even be begun is Failed or Skipped.
    """
    records: list[StepRecord] = []
    interrupted = False
    share = capture.budget.left() * SHARE
    capture.pace.look()
    early = EarlySteps(capture, share, list(reversed(capture.meanwhile)), list(reversed(capture.unhurried)))
    for place, step in enumerate(plan, start=1):
        capture.watcher.began(step)
        begun = early.begun.pop(step.name, None)
        if place == len(plan) or step.name == layout.SECOND_EXPOSURE or (begun and capture.options.gap >= LEAST_GAP):
            early.load_all()
        start = time.monotonic_ns() if begun is None else begun.start_ns
        if layout.SECOND_EXPOSURE not in early.begun:  # it is at work, and does more to the VM than what is waited for
            capture.watch.began(step.name)
        end = capture.watch.conclude(capture.staging.work)
        thin = thin_out(plan[place - 1 :], capture.pace, capture.left(), (step.name,) if begun else early.begun)
        end = (
            None if begun is not None and step.beside else end
        )  # it was at work when the VM ended: it says what it met
        if (refusal := _refusal(step, capture, end, thin, interrupted=interrupted)) is not None:
            answer = refusal if begun is None else _taken_already(begun, refusal)
        else:
            try:
                answer = _run(
                    step,
                    capture,
                    begun,
                    partial(early.beside, step, plan[place:]),
                    partial(begin, step, capture, kept_for(plan[place:], capture, share), thin),
                    every=SOON if any(later.beside == step.name for later in plan[place:]) else TICK_SECONDS,
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
        if not interrupted:
            early.after(step, plan[place:])
    return tuple(records)


def _taken_already(begun: BegunStep, refusal: _Answer) -> _Answer:
    """Return what a step that was begun beside others has taken, else why it is not waited for; it is ended."""
    if not has_answered(begun.child):
        end_child(begun.child)
        return refusal
    with suppress(ChildTimedOut, ChildFailed):
        wire = msgspec.json.decode(collect(begun.child, LEAST_SECONDS), type=OutcomeWire)
        if wire.kind == "Collected":
            return _Answer(from_wire(wire))
    return refusal


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


def _run(
    step: Step,
    capture: Run,
    begun: BegunStep | None,
    go_on: Callable[[BegunStep], None],
    begin: Callable[[], BegunStep],
    *,
    every: float,
) -> _Answer:
    """Run one step to its end, or wait for the end of one that has begun, looking around `every` so many seconds."""
    seconds = 0.0
    preview = _preview(step, capture)
    try:
        begun = begun or begin()
        seconds = begun.seconds
        left = begun.deadline.left() + LEAST_SECONDS
        tick = _tick(begun, capture, go_on, preview)
        wire = msgspec.json.decode(collect(begun.child, left, tick, every=every), type=OutcomeWire)
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


def _tick(
    begun: BegunStep, capture: Run, go_on: Callable[[BegunStep], None], preview: Preview | None
) -> Callable[[], None]:
    """Return what to do again and again while a step's child works."""

    def tick() -> None:
        begun.look()
        capture.watch.look()
        capture.watcher.tick()
        if preview is not None and (words := preview.look()):
            capture.watcher.tell(f"so far: {words}")
        go_on(begun)

    return tick


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
