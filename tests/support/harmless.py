"""Asks a process everything that a capture can ask, and tells what harm it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.records import QmpExchange
from autopsy.capture.qmp import unstable
from autopsy.target.target import is_alive
from support import verdicts
from support.asking import a_monitor, capture_of

STEPS = (layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS, layout.SECOND_EXPOSURE, layout.UNSTABLE)


@dataclass(frozen=True, slots=True)
class Trial:
    """What was asked, and what it did: `harm` is empty where it did none."""

    asked: tuple[QmpExchange, ...]
    harm: tuple[str, ...]

    @property
    def answered(self) -> set[str]:
        return {each.question for each in self.asked if each.outcome == "answered"}

    @property
    def withheld(self) -> dict[str, str]:
        """Return the questions that got no answer in any step, and why."""
        return {each.question: each.why for each in self.asked if each.question not in self.answered}


def ask_everything(folder: Path, pid: int, monitor: Path, state: Callable[[], object]) -> Trial:
    """Ask by the steps of a capture, whatever the guard says, and --ask-unstable last.

    `state` tells what questions must leave as it was; it raises an OSError where it cannot be had.
    """
    before, threads = state(), verdicts.threads(pid)
    with capture_of(folder, pid, a_monitor(monitor)) as capture:
        capture.witness()
        capture.query_status()
        capture.query_block(ask_anyway=True)
        capture.throttle_groups(ask_anyway=True)
        capture.ask_again(ask_anyway=True)
        capture.run(layout.UNSTABLE, unstable.ask, ask_anyway=True, ask_unstable=True)
        asked = tuple(each for step in STEPS for each in capture.told(step))
        if not is_alive(capture.target):
            last = [each.question for each in asked if each.outcome != "skipped"][-1]
            return Trial(asked, (f"it ended at {last}",))
    unheard = tuple(f"{each.question} was not answered" for each in asked if each.outcome in {"no answer", "silent"})
    try:
        after = state()
    except OSError as error:
        return Trial(asked, (*unheard, f"it does not answer any more: {error!r}"))
    changed = () if after == before else (f"{before} became {after}",)
    return Trial(asked, (*unheard, *changed, *verdicts.harm(threads, verdicts.threads(pid))))
