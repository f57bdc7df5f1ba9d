"""A copy of this process at work, with files for its ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from autopsy.dataclass import dataclass
from autopsy.linux.tasks.forking import Child, PipeEnds, end, ended, fork


@dataclass(frozen=True, slots=True)
class Forked:
    """A running copy. It is waited for and killed as subprocess.Popen's programs are."""

    child: Child

    @classmethod
    def start(cls, work: Callable[[], None], ends: tuple[int, int, int]) -> Forked:
        """Fork a process that runs `work` with these descriptors for stdin, stdout and stderr, and dies with us.

        Raises:
            OSError: there is no room for another process.
        """

        def live(_: PipeEnds) -> int:
            try:
                for number, descriptor in enumerate(ends):
                    os.dup2(descriptor, number)
                work()
            except BaseException:  # noqa: BLE001 - its last line is all that its parent reads of it
                with suppress(OSError):
                    os.write(2, traceback.format_exc().encode("utf-8", "replace"))
                return 1
            return 0

        return cls(fork(live))

    def wait(self, timeout: float) -> int:
        """Return the exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        status = ended(self.child.pidfd, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(sys.argv[:1], timeout)
        end(self.child)
        return status

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.child.pidfd, signal.SIGKILL)
