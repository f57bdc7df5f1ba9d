"""For how long the watch itself was held between two rounds: who holds all of a host holds the VMs on it, too.

CLOCK_MONOTONIC stands while the host is suspended to memory. It goes on while the host is suspended to idle and has no
driver of idle states that stops it, and while a freezer or a signal stops us.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel

SECOND = 1_000_000_000
HELD_NS = SECOND // 2  # by which a wait lasts longer than it was to, and nobody only came late
SCHEDSTAT = "/proc/thread-self/schedstat"


@dataclass(slots=True)
class HeldTime:
    """`total_ns` is the sum since the watch began."""

    total_ns: int = 0

    def wait(self, stopped: Callable[[float], bool], seconds: float) -> bool:
        """Wait by `stopped` for so long, return its answer, and count what it took longer without need.

        Time in which we would have run and were given no processor is not counted: a busy host is not held.
        """
        until, waited = time.monotonic_ns() + int(seconds * SECOND), run_delay()
        answer = stopped(seconds)
        held = time.monotonic_ns() - until - (run_delay() - waited)
        if held > HELD_NS:
            self.total_ns += held
        return answer


def run_delay() -> int:
    """Return for how many ns this thread has waited for a processor so far, 0 where the kernel does not count that."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(read_kernel(SCHEDSTAT, 128).split()[1])
    return 0
