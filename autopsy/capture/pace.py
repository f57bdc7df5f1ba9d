"""Tells how slowly the host lets a capture work, and what is left out so that the rest ends within its budget.

On a host whose CPUs others want, each second of work takes many. What is left out then goes in one order: first what
can be had of the bundle later (`autopsy examine BUNDLE`), then what the verdict needs least.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import field
from typing import NamedTuple

from autopsy.bundle import layout, proc_stat
from autopsy.capture.step import Step
from autopsy.dataclass import dataclass
from autopsy.linux.child import collect, in_child, spawn
from autopsy.linux.tasks import behind, cpus
from autopsy.linux.tasks.behind import BackgroundChild

AT_EASE = 1.5  # seconds for one of work, up to which there is a CPU that nobody else wants
STARVED = 3.0  # seconds for one of work: less is a busy host's everyday
WINDOW_NS = 5e8  # of our work, by which the pace is judged: load comes and goes

# CPU seconds of a small VM's diagnosis, report and seal; and of one byte of the core: hashed twice, packed, unpacked.
TAIL_CPU = 0.5
CORE_BYTE_CPU = 1 / 100e6


class ThinnedStep(NamedTuple):
    """A step that does less, or is left out: CPU seconds that this saves for a small VM."""

    step: str
    saves: float
    whole: bool


# The whole of a capture is 2.5 CPU seconds; what stands here is measured, see docs/architecture.md.
THINNED = (
    ThinnedStep(layout.GDB_THREADS, 0.3, whole=False),
    ThinnedStep(layout.SECOND_EXPOSURE, 0.25, whole=False),
    ThinnedStep(layout.GDB_THREADS, 0.2, whole=True),
    ThinnedStep(layout.HOST, 0.1, whole=True),
    ThinnedStep(layout.PROC_AIO, 0.03, whole=True),
    ThinnedStep(layout.PROC_FDS, 0.07, whole=True),
    ThinnedStep(layout.PROC_STACKS, 0.03, whole=True),
    ThinnedStep(layout.THROTTLE_GROUPS, 0.02, whole=True),
    ThinnedStep(layout.QUERY_BLOCK, 0.03, whole=True),
)


@dataclass(frozen=True, slots=True)
class Thinned:
    """Which steps do less, and which are left out."""

    lean: frozenset[str] = frozenset()
    out: frozenset[str] = frozenset()


@dataclass(slots=True)
class Pace:
    """How many seconds pass for one second of our work, as far as the last steps show.

    `starved_behind` says that work of ours got no CPU as long as others came first.
    """

    ran_ns: float = 0.0
    waited_ns: float = 0.0
    at: tuple[int, int] = field(default=(0, 0))
    starved_behind: bool = False

    @property
    def slowness(self) -> float:
        """Return the seconds that one second of work takes; 1 where nobody else wants the CPU, or nobody tells."""
        return (self.ran_ns + self.waited_ns) / self.ran_ns if self.ran_ns else 1.0

    def look(self) -> None:
        """Take in what this process met since the last look; where it starves, give up what makes it do so."""
        if behind.come_forward():
            self.at = (0, 0)
            self.ran_ns = self.waited_ns = 0.0
        now = spent()
        self.take(now[0] - self.at[0], now[1] - self.at[1])
        self.at = now
        if self.slowness >= STARVED:
            cpus.give_back()

    def may_wait(self) -> bool:
        """Return whether our work may run behind all others: there is a CPU to spare, and it can come forward again."""
        return self.slowness < AT_EASE and not self.starved_behind and behind.may_return()

    def watch_over(self, pid: int) -> Callable[[], None]:
        """Return what to do again and again while a child works behind all others, or on few CPUs: not to starve it."""
        child = BackgroundChild(pid)

        def look() -> None:
            child.look()
            if child.forward and not self.starved_behind:
                self.starved_behind = True
                cpus.give_back()

        return look

    def take(self, ran_ns: int, waited_ns: int) -> None:
        """Take in what some process of ours met: for how long it ran, and for how long it waited to run."""
        self.ran_ns += ran_ns
        self.waited_ns += waited_ns
        kept = min(1.0, WINDOW_NS / self.ran_ns) if self.ran_ns else 1.0
        self.ran_ns *= kept
        self.waited_ns *= kept

    def tail(self, core_bytes: int) -> float:
        """Return the seconds that diagnosis, report and seal will take."""
        return self.slowness * (TAIL_CPU + core_bytes * CORE_BYTE_CPU)

    def in_words(self) -> str:
        """Return why something is left out."""
        return f"this host is starved: a second of work takes {self.slowness:.0f}, and the budget must hold"


def in_child_behind(work: Callable[[], bytes], seconds: float, pace: Pace) -> bytes:
    """Run `work` in a child as child.in_child does, behind all others where nothing is lost by that."""
    if not pace.may_wait():
        return in_child(work, seconds)

    def work_behind() -> bytes:
        behind.step_back()
        return work()

    child = spawn(work_behind)
    return collect(child, seconds, pace.watch_over(child.pid))


def spent() -> tuple[int, int]:
    """Return for how many ns this process's main thread ran so far, and waited to run; zeros where nobody tells."""
    return behind.met_since()


def thin_out(steps: Iterable[Step], pace: Pace, seconds: float, begun: Collection[str] = ()) -> Thinned:
    """Return what of the steps to come does less, so that all of them end within so many seconds.

    A step that has `begun` stays as it was begun.
    """
    coming = [step for step in steps if step.name not in begun]
    needed = pace.slowness * sum(step.cpu for step in coming)
    names = {step.name for step in coming}
    lean: set[str] = set()
    out: set[str] = set()
    if pace.slowness < STARVED:
        return Thinned()
    for part in THINNED:
        if needed <= seconds:
            break
        if part.step in names:
            (out if part.whole else lean).add(part.step)
            needed -= pace.slowness * part.saves
    return Thinned(frozenset(lean - out), frozenset(out))


def age() -> float:
    """Return for how many seconds this process has been there: whoever started it has waited since then."""
    try:
        with open("/proc/self/stat", "rb") as stream:
            ticks = proc_stat.parse(stream.read()).start_ticks
    except OSError:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) if ticks else 0.0
