"""Starts captures that outlive the watch, and hears how they end."""

from __future__ import annotations

import os
import re
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
from autopsy.store.entries import entries
from autopsy.store.place import expendable_path, provide
from autopsy.watch.model import CaptureResult

UNIT = "autopsy@{}.service"
UNIT_FILES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SYSTEMD = Path("/run/systemd/system")
SYSTEMCTL_SECONDS = 5.0
LONGEST_SECONDS = 300.0
ACTIVE = frozenset({"active", "activating", "deactivating", "reloading"})
PLAIN_NAME = re.compile(r"[A-Za-z0-9:_.][A-Za-z0-9:_.-]*")  # what a unit's instance may be without being escaped
NICE = -5  # as in the unit: a stall may be over soon, and the evidence with it
FAST = ("--fast",)
LIGHT = ("--light",)


class CountedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What of `capture --json` the watch counts."""

    bundle: str
    stop_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCapture:
    """How a capture ended; `bundle` is empty where none was sealed."""

    vm: str
    result: CaptureResult
    light: bool = False
    bundle: str = ""
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
class CaptureUnit:
    """A capture that systemd runs as a unit of the package."""

    vm: str
    unit: str
    since: float
    light: bool = False
    asked_at: float = 0.0

    def ended(self) -> EndedCapture | None:
        """Return how it ended, None while it goes on; systemd is asked once a second at most."""
        now = time.monotonic()
        if now - self.asked_at < 1.0 or now - self.since < 1.0:
            return None
        self.asked_at = now
        properties = _systemctl("show", "--property=ActiveState,Result", self.unit)
        words = dict(line.split("=", 1) for line in properties.splitlines() if "=" in line)
        if words.get("ActiveState") in ACTIVE and now - self.since < LONGEST_SECONDS:
            return None
        if words.get("Result") != "success":
            return EndedCapture(vm=self.vm, result=CaptureResult.FAILED)
        return EndedCapture(vm=self.vm, result=CaptureResult.SEALED, bundle=_newest_since(self.since))


@dataclass(slots=True)
class CaptureLauncher:
    """Starts captures, each for itself. `out` is where bundles go instead of the store's expendable part."""

    run_folder: Path
    out: Path | None = None
    words: tuple[str, ...] = (sys.executable, "-I", "-m", "autopsy")
    running: list[RunningCapture] = field(default_factory=list)

    def start(self, vm: str, target: str, *, light: bool, patient: bool = False) -> bool:
        """Start a capture of a VM, a `patient` one with the usual five seconds between its looks; return if it began.

        Full ones are a unit where the watch itself is one, and the package's units are there.
        """
        unit = UNIT.format(target)
        if not light and not self.out and _runs_under_systemd() and PLAIN_NAME.fullmatch(target) and _has_unit():
            if not _systemctl("start", "--no-block", unit, check=True):
                return False
            self.running.append(CaptureUnit(vm, unit, time.monotonic()))
            return True
        answer = self.run_folder / f"capture-{private.token()}.json"
        how = LIGHT if light else () if patient else FAST
        try:
            place = self.out or expendable_path()
            if self.out is None:
                provide(place)
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


def _has_unit() -> bool:
    return any((Path(folder) / UNIT.format("")).is_file() for folder in UNIT_FILES)


def _systemctl(*words: str, check: bool = False) -> str:
    """Return what systemctl says, empty where it fails; with `check` a word where it succeeds without any."""
    try:
        done = subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ours(),
            timeout=SYSTEMCTL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode:
        return ""
    return "done" if check else done.stdout.decode("utf-8", "replace")


def _newest_since(since: float) -> str:
    """Return the newest bundle of the store that is younger than a moment on CLOCK_MONOTONIC."""
    before = time.time() - (time.monotonic() - since)
    late = [entry for entry in entries() if entry.when >= before - 1]
    return str(max(late, key=lambda entry: entry.when).bundle) if late else ""
