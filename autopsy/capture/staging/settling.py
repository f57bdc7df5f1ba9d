"""A copy to a durable place at work: a disk that hangs is told from a host that is slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from autopsy.bundle import proc_stat
from autopsy.dataclass import dataclass
from autopsy.linux.child import again, collect, spawn_lasting
from autopsy.linux.tasks.forking import Child, end, has_answered

WRITTEN = b"wchar:"


@dataclass(slots=True)
class SettlingCopy:
    """The child that copies, how much it had written when it was last looked at, and since when it writes no more."""

    child: Child
    written: int = 0
    since: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Take note of whether it goes on: it has written more, or wants a CPU and not the disk."""
        written = self._written()
        if written != self.written or self._wants_a_cpu():
            self.written, self.since = written, time.monotonic()

    def goes_on(self, seconds: float) -> bool:
        """Return whether it is not done, and has gone on within so many seconds."""
        if has_answered(self.child):
            return False
        self.look()
        return time.monotonic() - self.since < seconds

    def _written(self) -> int:
        with suppress(OSError, ValueError, StopIteration), open(f"/proc/{self.child.pid}/io", "rb") as stream:
            return int(next(line.split()[1] for line in stream if line.startswith(WRITTEN)))
        return self.written

    def _wants_a_cpu(self) -> bool:
        with suppress(OSError), open(f"/proc/{self.child.pid}/stat", "rb") as stream:
            return proc_stat.parse(stream.read()).state == "R"
        return False


@dataclass(slots=True)
class Copier:
    """The process that copies to a durable folder, again and again: to fork one takes longer than most copies take."""

    folder: Path = Path()
    child: Child | None = None

    def begin(self, folder: Path, work: Callable[[], bytes]) -> SettlingCopy:
        """Begin a copy; `work` makes it, which is the same as long as the folder is.

        Raises:
            ChildFailed: no process could be started.
        """
        child, self.child = self.child, None
        if child is not None and (folder != self.folder or not again(child)):
            end(child)
            child = None
        self.folder, self.child = folder, child or spawn_lasting(work)
        return SettlingCopy(self.child)

    def collect(self, copy: SettlingCopy, seconds: float) -> bytes:
        """Wait for a copy that has begun, and return what it answers.

        Raises:
            ChildTimedOut, ChildFailed: as child.collect() raises them; the process has been ended then.
        """
        self.child = None
        data = collect(copy.child, seconds, copy.look, lasting=True)
        self.child = copy.child
        return data

    def end(self) -> None:
        """End it; a copy that goes on is cut short."""
        if self.child is not None:
            end(self.child)
            self.child = None
