"""What one capture runs with, and who watches it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from autopsy.bundle import layout
from autopsy.bundle.manifest import StepRecord
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.pace import Pace
from autopsy.capture.staging.staging import Staging
from autopsy.capture.step import Deadline, Options, Step
from autopsy.dataclass import dataclass
from autopsy.target.target import Target

SEALS_SHARE = 0.5  # of what is left, which the seal of a large core can keep from the steps


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
