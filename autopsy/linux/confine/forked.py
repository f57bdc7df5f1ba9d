"""A copy of this process at work, with files for its ends."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Forked:
    """A running copy. It is waited for and killed as subprocess.Popen's programs are."""

    pid: int
    pidfd: int

    @classmethod
    def start(cls, work: Callable[[], None], ends: tuple[int, int, int]) -> Forked:
        """Fork a process that runs `work` with these descriptors for stdin, stdout and stderr, and dies with us.

        Raises:
            OSError: there is no room for another process.
        """
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                for number, descriptor in enumerate(ends):
                    os.dup2(descriptor, number)
                if os.getppid() == parent:
                    work()
                    status = 0
            except BaseException:  # noqa: BLE001 - its last line is all that its parent reads of it
                with suppress(OSError):
                    os.write(2, traceback.format_exc().encode("utf-8", "replace"))
            finally:
                os._exit(status)
        return cls(pid, os.pidfd_open(pid))

    def wait(self, timeout: float) -> int:
        """Return the exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise subprocess.TimeoutExpired(sys.argv[:1], timeout)
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
