"""What a step of the plan is, and what can become of it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import LeftOut
from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.target.target import Target


class Impact(Enum):
    """What a step does to the VM; the value is what manifest.json says."""

    NONE = "none"
    ASKS = "asks"
    MAY_BLOCK = "asks, may block"
    MAY_HARM = "asks, may harm"
    STOPS = "stops"


@dataclass(frozen=True, slots=True)
class Collected:
    """The step took what it came for. `stop_ns` is how long the VM stood still for it."""

    why: str = ""
    stop_ns: int = 0


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A deadline of ours passed. What was written before it is kept."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Something broke that was not a deadline of ours."""

    why: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """The step was not tried, for a reason worth telling."""

    why: str


Outcome = Collected | TimedOut | Failed | Skipped


class Deadline:
    """A moment on CLOCK_MONOTONIC by which something must be over."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, never less than zero."""
        return max(0.0, self.at - time.monotonic())

    def expired(self) -> bool:
        """Return whether the moment has passed."""
        return time.monotonic() >= self.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator asked for. A `light` capture asks nothing and stops nothing."""

    fast: bool = False
    gap: float = 5.0
    budget: float = 60.0
    core: bool = True
    ask_anyway: bool = False
    ask_unstable: bool = False
    live_gdb: bool = False
    max_stop: float = 0.050
    binary: bool = True
    bpf: bool = True
    light: bool = False


@dataclass(frozen=True, slots=True)
class StepAtWork:
    """A step that is at work beside another: its process, and by when that has ended."""

    pidfd: int
    deadline: Deadline

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Wait for its end so long at most, and return whether it has ended, or its time is up."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(min(seconds, self.deadline.left()) * 1000)) or self.deadline.expired()


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a collector is given: one process, what was asked for, a folder to fill, what came before.

    `thinned` says why it is to do less than it could, empty where it does all: see pace.THINNED.
    `behind` says that what works on frozen bytes may run behind all others.
    `beside` is the step that this one need not wait for (see Step), None where that has ended.
    """

    target: Target
    options: Options
    staging: Path
    step: str
    deadline: Deadline
    thinned: str = ""
    behind: bool = False
    beside: StepAtWork | None = None

    @property
    def folder(self) -> Path:
        """Return evidence/<step>/, which exists."""
        return self.staging / "evidence" / self.step

    def write(self, file: str, data: bytes) -> None:
        """Store one file of this step's evidence at once, so that it outlives the step."""
        private.store(self.folder / file, data)

    def write_json(self, file: str, value: object) -> None:
        """Store records as indented JSON, for eyes as much as for the analyzer."""
        self.write(file, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")

    def leave_out(self, *limits: LeftOut) -> None:
        """Store what limits of ours keep out of this step's evidence, all of it at once; nothing where none bit."""
        if limits:
            self.write_json(layout.LEFT_OUT, limits)

    def wait_for_other(self) -> None:
        """Wait for the end of the step beside this one, whose findings are needed now."""
        if self.beside is not None:
            self.beside.has_ended(self.deadline.left())

    def earlier(self, step: str, file: str) -> bytes:
        """Return what an earlier step stored, empty when it stored nothing."""
        try:
            return (self.staging / "evidence" / step / file).read_bytes()
        except FileNotFoundError:
            return b""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the plan. `collect` runs in a child process that may be abandoned at `deadline` seconds.

    `without_vm` says that it has something to take when the VM has ended, too. With `after` it is begun once that step
    has ended, beside those that stand between the two: it works on frozen bytes alone, or looks at the host or at the
    process from outside, and asks the VM nothing. With `beside` it is begun while that step is at work, once all others
    before it have ended: it waits itself for what it needs of it, and has that much longer.
    `cpu` are the CPU seconds that it takes of a small VM.
    """

    name: str
    impact: Impact
    deadline: float
    collect: Callable[[Scene], Outcome]
    without_vm: bool = False
    after: str = ""
    beside: str = ""
    cpu: float = 0.1
