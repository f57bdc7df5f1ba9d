"""Waits for a process of ours as long as it works: a busy host makes it late, and only one that sleeps has hung."""

from __future__ import annotations

import time

from autopsy.bundle import proc_stat
from autopsy.linux.files import read_kernel

SMALL = 1024


class Hangs(Exception):
    """The process sleeps in the kernel, and does not run."""


class Patience:
    """Called while a process is waited for; `seconds` are its own, in which it need not run at all."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._folder = f"/proc/{pid}"
        self._until = time.monotonic() + seconds
        self._ran = b""

    def __call__(self) -> None:
        """Look at the process.

        Raises:
            Hangs: its time has passed, and it has not run since the last look, nor would it.
            OSError: it is gone.
        """
        if time.monotonic() < self._until:
            return
        ran = read_kernel(f"{self._folder}/schedstat", SMALL)
        if ran == self._ran and proc_stat.parse(read_kernel(f"{self._folder}/stat", SMALL)).state != "R":
            raise Hangs
        self._ran = ran
