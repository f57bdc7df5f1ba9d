"""A capture that systemd runs as a unit of the package, and how the watch tells it that nobody asked to keep it.

The unit takes its further words from a file of the run folder, which is root's alone, and reads it as it starts: what a
person starts by the same unit finds none, and goes where it is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.archive import members
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import decode_manifest
from autopsy.dataclass import dataclass
from autopsy.errors import AutopsyError
from autopsy.files import private
from autopsy.linux.environment import ours
from autopsy.store.entries import entries
from autopsy.watch.model import CaptureResult, EndedCapture

NAME = "autopsy@{}.service"
FILES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
WORDS = "asked-{}.env"  # in the run folder; the unit names it as its EnvironmentFile
VARIABLE = "AUTOPSY_CAPTURE"
PLAIN_NAME = re.compile(r"[A-Za-z0-9:_.][A-Za-z0-9:_.-]*")  # what a unit's instance may be without being escaped
PLAIN_PLACE = re.compile(r"[A-Za-z0-9/_.-]+")  # what systemd splits into no further words
ASK_SECONDS = 5.0
LONGEST_SECONDS = 300.0
ACTIVE = frozenset({"active", "activating", "deactivating", "reloading"})


@dataclass(frozen=True, slots=True)
class UnitStarter:
    """What starts units. `systemctl` is the command that speaks to the manager."""

    run_folder: Path
    systemctl: tuple[str, ...] = ("systemctl",)
    folders: tuple[str, ...] = FILES

    def can_run(self, target: str, place: Path) -> bool:
        """Return whether the package's unit is there, and a target and a place can be told to it."""
        plain = PLAIN_NAME.fullmatch(target) and PLAIN_PLACE.fullmatch(str(place))
        return bool(plain) and any((Path(folder) / NAME.format("")).is_file() for folder in self.folders)

    def start(self, vm: str, target: str, pid: int, words: Sequence[str]) -> CaptureUnit | None:
        """Have a unit capture a VM with these further words; None where it was not begun."""
        asked = self.run_folder / WORDS.format(target)
        try:
            private.store(asked, f'{VARIABLE}="{" ".join(words)}"\n'.encode())
        except OSError:  # the folder is not ours alone, or full
            return None
        unit = NAME.format(target)
        if self.ask("start", "--no-block", unit) is None:
            _forget(asked)
            return None
        return CaptureUnit(vm, pid, unit, self, asked, time.monotonic())

    def ask(self, *words: str) -> str | None:
        """Return what systemctl says, None where it fails."""
        try:
            done = subprocess.run(
                [*self.systemctl, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=ours(),
                timeout=ASK_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return None if done.returncode else done.stdout.decode("utf-8", "replace")


@dataclass(slots=True)
class CaptureUnit:
    """A capture that systemd runs as a unit of the package."""

    vm: str
    pid: int
    unit: str
    starter: UnitStarter
    asked: Path
    since: float
    light: bool = False
    asked_at: float = 0.0

    def ended(self) -> EndedCapture | None:
        """Return how it ended, None while it goes on; systemd is asked once a second at most."""
        now = time.monotonic()
        if now - self.asked_at < 1.0 or now - self.since < 1.0:
            return None
        self.asked_at = now
        said = self.starter.ask("show", "--property=ActiveState,Result", self.unit) or ""
        words = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if words.get("ActiveState") in ACTIVE and now - self.since < LONGEST_SECONDS:
            return None
        _forget(self.asked)
        if words.get("Result") != "success":
            return EndedCapture(vm=self.vm, result=CaptureResult.FAILED)
        return self._sealed(time.time() - (now - self.since))

    def _sealed(self, since: float) -> EndedCapture:
        """Find the bundle of this VM that is younger than a moment: its manifest tells what the capture cost."""
        for entry in reversed(entries()):
            if not entry.expendable or entry.when < since - 1:
                continue
            with suppress(AutopsyError):  # damaged, or gone again: then it is not known
                manifest = _manifest(entry.bundle)
                if manifest is not None and manifest.target.pid == self.pid:
                    stopped = sum(step.stop_ns for step in manifest.steps) / 1e6
                    return EndedCapture(
                        vm=self.vm, result=CaptureResult.SEALED, bundle=str(entry.bundle), stop_ms=stopped
                    )
        return EndedCapture(vm=self.vm, result=CaptureResult.SEALED)


def _manifest(bundle: Path) -> Manifest | None:
    first = next(iter(members(bundle)), None)
    if first is None or first.name != layout.MANIFEST:
        return None
    return decode_manifest(bundle, b"".join(first.parts()))


def _forget(asked: Path) -> None:
    with suppress(OSError):
        os.unlink(asked)
