"""A process of our own that sleeps in the kernel, as a wedged VM's threads do: what is tried harms nobody."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sleeping_process() -> Iterator[int]:
    """Yield the PID of a process that ends when the block does, or when we die.

    It is no descendant of ours, for Yama lets anybody trace those. It waits for a pipe that we hold the other end of.

    Raises:
        OSError: no process could be started.

    Concurrency: call it only from a process with one thread.
    """
    waits_on, held = os.pipe2(os.O_CLOEXEC)
    told, telling = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        try:
            if os.fork() == 0:
                os.setsid()
                os.close(held)
                os.close(told)
                os.write(telling, b"%d" % os.getpid())
                os.close(telling)
                os.read(waits_on, 1)
        finally:
            os._exit(0)
    try:
        os.close(telling)
        os.close(waits_on)
        os.waitpid(between, 0)
        words = os.read(told, 32)
        if not words:
            raise OSError("no process could be started")
        pid = int(words)
        pidfd = os.pidfd_open(pid)
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # ours to bury only where nobody else is there to do it
                os.waitpid(pid, 0)
            os.close(pidfd)
    finally:
        os.close(held)
        os.close(told)
