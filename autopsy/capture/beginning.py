"""Begins steps, each in a child of its own: in their turn, or ahead of it beside the one that is waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field
from importlib import import_module

import msgspec

from autopsy.bundle import layout
from autopsy.capture.pace import STARVED, Thinned, spent, thin_out
from autopsy.capture.run import Run
from autopsy.capture.step import Deadline, Failed, Impact, Outcome, Scene, Step, StepAtWork, TimedOut
from autopsy.capture.wire import OutcomeWire, as_wire
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, spawn
from autopsy.linux.tasks import cpus
from autopsy.linux.tasks.forking import Child, has_answered

KEPT_SHARE = 0.7  # of what is left, which the later steps' expected work can keep from one before them
STRETCH = 4.0
LEAST_SECONDS = 0.2  # with less left of the budget a step is not begun


@dataclass(frozen=True, slots=True)
class BegunStep:
    """A step's child at work: since when, and until when at most."""

    child: Child
    start_ns: int
    deadline: Deadline
    seconds: float
    behind: bool
    look: Callable[[], None]


@dataclass(slots=True)
class EarlySteps:
    """What goes ahead while a step is waited for: steps that are begun before their turn, and modules that are loaded.

    `modules` are loaded from the last on, the `unhurried` ones where a step takes long anyway. `share` are the seconds
    that each later step is sure of.
    """

    capture: Run
    share: float
    modules: list[str]
    unhurried: list[str]
    begun: dict[str, BegunStep] = field(default_factory=dict)

    def load_all(self) -> None:
        """Have what is not needed yet loaded, too."""
        self.modules[:0] = self.unhurried
        self.unhurried.clear()

    def after(self, ended: Step, later: tuple[Step, ...]) -> None:
        """Begin what need only wait for the step that has ended. Where that cannot be, it is begun in its turn."""
        if not _has_cpus():
            return
        for step in later:
            if step.after == ended.name and self._may_begin(step, later):
                self._begin(step, later)

    def beside(self, at_hand: Step, later: tuple[Step, ...], begun: BegunStep) -> None:
        """Begin and load what can be, as long as the step at hand works."""
        while not has_answered(begun.child):
            self._begin_next(at_hand, later, begun)
            if layout.SECOND_EXPOSURE in self.begun:
                self.load_all()
            if not self.modules:
                return
            with suppress(ImportError):  # whoever needs it will say so
                _load(self.modules.pop())

    def _begin_next(self, at_hand: Step, later: tuple[Step, ...], begun: BegunStep) -> None:
        """Begin the next step that need not wait for the one at hand, once all between the two have answered."""
        if not _has_cpus() or self.capture.pace.slowness >= STARVED:
            return
        waits_for = (step for step in later if not self._has_answered(step))
        step = next(waits_for, None)
        if step is None or step.name in self.begun or step.beside != at_hand.name or not self._may_begin(step, later):
            return
        self._begin(step, later, StepAtWork(begun.child.pidfd, begun.deadline))
        if step.impact is not Impact.NONE:
            self.capture.watch.began(step.name)

    def _has_answered(self, step: Step) -> bool:
        return step.name in self.begun and has_answered(self.begun[step.name].child)

    def _may_begin(self, step: Step, later: tuple[Step, ...]) -> bool:
        if self.capture.left() < LEAST_SECONDS or (self.capture.watch.end is not None and not step.without_vm):
            return False
        return step.name not in self._thinned(later).out

    def _thinned(self, later: tuple[Step, ...]) -> Thinned:
        return thin_out(later, self.capture.pace, self.capture.left(), self.begun)

    def _begin(self, step: Step, later: tuple[Step, ...], beside: StepAtWork | None = None) -> None:
        others = tuple(other for other in later if other is not step)
        with suppress(ChildFailed):
            kept = kept_for(others, self.capture, self.share)
            self.begun[step.name] = begin(step, self.capture, kept, self._thinned(later), beside)


def _has_cpus() -> bool:
    """Return whether two of us can run at the same time."""
    return len(os.sched_getaffinity(0)) > 1


def kept_for(later: tuple[Step, ...], capture: Run, share: float) -> float:
    """Return the seconds that are the later steps' own, however long one before them hangs."""
    work = capture.pace.slowness * sum(step.cpu for step in later) if capture.pace.slowness >= STARVED else 0.0
    return max(share * len(later), min(KEPT_SHARE * capture.left(), work))


def begin(step: Step, capture: Run, kept: float, thin: Thinned, beside: StepAtWork | None = None) -> BegunStep:
    """Begin one step; `kept` seconds of the budget are the later steps' own, however long this one hangs.

    On a starved host it has more time than its deadline, for it gets less done in that; and where it may have to wait
    for another `beside` it.

    Raises:
        ChildFailed: there can be no process for it.
    """
    stretch = min(STRETCH, max(1.0, capture.pace.slowness / STARVED))
    own = step.deadline * stretch + (0.0 if beside is None else beside.deadline.left())
    seconds = min(own, max(LEAST_SECONDS, capture.left() - kept))
    capture.staging.folder(step.name)
    start, deadline = time.monotonic_ns(), Deadline(seconds)
    thinned = capture.pace.in_words() if step.name in thin.lean else ""
    behind = capture.pace.may_wait()
    scene = Scene(capture.target, capture.options, capture.staging.work, step.name, deadline, thinned, behind, beside)
    child = spawn(lambda: _told(as_wire(_collect(step, scene))))
    look = capture.pace.watch_over(child.pid) if scene.behind or cpus.keeps_to_half() else _nothing
    return BegunStep(child, start, deadline, seconds, scene.behind, look)


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
