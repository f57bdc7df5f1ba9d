"""Keeps a process of ours on its CPU while it holds a lock that a VM may want."""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType
from typing import Self

BURST_SECONDS = 0.002  # the longest time for which nobody else gets our CPU


class Unpreempted:
    """While it is entered, no other program takes our CPU away from us, as far as we may ask for that.

    To read another process's memory is to take the lock of its memory map for a microsecond. On a busy host the reader
    is sooner or later put aside within that microsecond, for milliseconds, and whatever the VM maps or unmaps waits for
    it: 12 ms were seen with seven programs a CPU, 0.1 ms this way.
    Concurrency: it is for the thread that enters it; a child that is forked meanwhile is as we were before.
    """

    def __init__(self) -> None:
        self._plain = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        self._since = 0.0

    def __enter__(self) -> Self:
        """Rise."""
        self._rise()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Fall back to what we were."""
        self._fall()

    def breathe(self) -> None:
        """Let others have the CPU if it has been ours for a while: to be called where no lock is held."""
        if time.monotonic() - self._since > BURST_SECONDS:
            self._fall()
            os.sched_yield()
            self._rise()

    def _rise(self) -> None:
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # without the right to it, or in a control group without any such time
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))

    def _fall(self) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, self._plain, os.sched_param(0))
