"""Starts captures that outlive the watch, and hears how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Protocol

import msgspec

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.linux.environment import ours
from autopsy.store.place import expendable_path, provide
from autopsy.watch.captures.unit import UnitStarter
from autopsy.watch.model import CaptureResult, EndedCapture

SYSTEMD = Path("/run/systemd/system")
ANSWER = "capture-{}-{}.json"  # in the run folder: our PID, and a word
NICE = -5  # as in the unit: a stall may be over soon, and the evidence with it
FAST = ("--fast",)
LIGHT = ("--light",)


class CountedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What of `capture --json` the watch counts."""

    bundle: str
    stop_ms: float = 0.0


class RunningCapture(Protocol):
    """A capture under way."""

    vm: str
    light: bool

    def ended(self) -> EndedCapture | None:
        """Return how it ended, None while it goes on."""


@dataclass(slots=True)
class CaptureProcess:
    """A capture that runs as a process of its own session: it goes on when the watch ends."""

    vm: str
    light: bool
    process: subprocess.Popen[bytes]
    answer: Path
    since: float

    def ended(self) -> EndedCapture | None:
        """Return how it ended, None while it goes on."""
        if self.process.poll() is None:
            return None
        try:
            answer = msgspec.json.decode(self.answer.read_bytes(), type=CountedAnswer)
        except (OSError, msgspec.MsgspecError):
            return EndedCapture(vm=self.vm, result=CaptureResult.FAILED, light=self.light)
        finally:
            with suppress(OSError):
                self.answer.unlink()
        result = CaptureResult.LIGHT if self.light else CaptureResult.SEALED
        return EndedCapture(vm=self.vm, result=result, light=self.light, bundle=answer.bundle, stop_ms=answer.stop_ms)


@dataclass(slots=True)
class CaptureLauncher:
    """Starts captures, each for itself. `out` is where bundles go instead of the store's expendable part.

    `units` starts them as units of the package, None where the watch is no unit itself.
    """

    run_folder: Path
    out: Path | None = None
    words: tuple[str, ...] = (sys.executable, "-I", "-m", "autopsy")
    running: list[RunningCapture] = field(default_factory=list)
    units: UnitStarter | None = None

    def __post_init__(self) -> None:
        """Start units where the watch itself is one."""
        if self.units is None and _runs_under_systemd():
            self.units = UnitStarter(self.run_folder)

    def start(self, vm: str, target: str, pid: int, *, light: bool, patient: bool = False) -> bool:
        """Start a capture of a VM, a `patient` one with the usual five seconds between its looks; return if it began.

        Full ones are a unit where the watch itself is one, and the package's units are there.
        """
        answer = self.run_folder / ANSWER.format(os.getpid(), private.token())
        how = LIGHT if light else () if patient else FAST
        try:
            place = self.out or expendable_path()
            if self.out is None:
                provide(place)
            if not light and self.out is None and self.units and self.units.can_run(target, place):
                unit = self.units.start(vm, target, pid, (*how, "--out", str(place)))
                self.running += [unit] if unit else []
                return unit is not None
            with private.new(answer) as stream:
                process = subprocess.Popen(
                    [*self.words, "capture", *how, "--json", "--quiet", "--out", str(place), "--", target],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.DEVNULL,
                    env=ours(),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError:
            return False
        if not light:
            with suppress(OSError):  # without the right to it, as fast as others
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        self.running.append(CaptureProcess(vm, light, process, answer, time.monotonic()))
        return True

    def ended(self) -> tuple[EndedCapture, ...]:
        """Return the captures that have ended since this was asked last."""
        over = [(capture, end) for capture in self.running if (end := capture.ended()) is not None]
        self.running = [capture for capture in self.running if all(capture is not one for one, _ in over)]
        return tuple(end for _, end in over)


def _runs_under_systemd() -> bool:
    return bool(os.environ.get("INVOCATION_ID")) and SYSTEMD.is_dir()
