"""Keeps our work to half of the CPUs: what wakes up beside it finds one where nothing of ours runs.

Whatever our priority, the scheduler weighs our control group, or session, against that of a VM; and whoever wakes up
where one of our processes runs may wait until its slice ends, some milliseconds (sched(7)).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STAT = "/proc/stat"
IDLE, WAITS_FOR_DISKS = 4, 5  # words of a CPU's line there, see proc_pid_stat(5) and proc_stat(5)
LAST_CPU = 36  # words after the name in /proc/PID/stat
LEAST_FREE = 0.25  # of the time, for which a CPU was idle or ours: one of less is no place to keep to

_at_first: tuple[float, float, dict[int, int]] = (0.0, 0.0, {})
_all: frozenset[int] = frozenset()  # while we keep to some: those that we may use


def remember() -> None:
    """Remember for how long each CPU has been idle: what is idle from now on is where `kept_to_half` keeps to."""
    global _at_first  # noqa: PLW0603 - a process has one start
    _at_first = time.monotonic(), time.process_time(), _idle_ticks()


@contextmanager
def kept_to_half(least: int = 1) -> Iterator[None]:
    """Have this process, and all that it starts, use half of the CPUs that it may, those that are idle most.

    It stays as it is where half are fewer than `least`, or where they are not idle enough: whoever shares a CPU with
    many gets further where he may go to any.
    """
    global _all  # noqa: PLW0603 - affinity is the process's
    may, chosen = frozenset[int](), frozenset[int]()
    with suppress(OSError, ValueError, IndexError):
        may = frozenset(os.sched_getaffinity(0))
        count = len(may) // 2
        chosen = frozenset(_idlest(may)[:count] if count >= least else ())
    if not chosen or len(chosen) < least:
        yield
        return
    try:
        with suppress(OSError):
            os.sched_setaffinity(0, chosen)
            _all = may
        yield
    finally:
        give_back()
        _all = frozenset()


def keeps_to_half() -> bool:
    """Return whether this process keeps to some CPUs of those that it may use."""
    return bool(_all)


def give_back(pid: int = 0) -> None:
    """Let a process use all CPUs again that we may, if we keep to half of them."""
    if _all:
        with suppress(OSError):
            os.sched_setaffinity(pid, _all)


def _idlest(may: frozenset[int]) -> list[int]:
    """Return the CPUs that were idle, or ours, since `remember`: those that were so longest first."""
    since, worked, before = _at_first
    ours = max(0.0, time.process_time() - worked)  # a child has not worked yet
    with open("/proc/self/stat", "rb") as stream:
        at_present = int(stream.read().rpartition(b")")[2].split()[LAST_CPU])
    tick = os.sysconf("SC_CLK_TCK")
    free = {cpu: (ticks - before.get(cpu, ticks)) / tick for cpu, ticks in _idle_ticks().items()}
    free[at_present] = free.get(at_present, 0.0) + ours
    least = LEAST_FREE * (time.monotonic() - since)
    return sorted((cpu for cpu in may if free.get(cpu, 0.0) >= least), key=lambda cpu: (-free[cpu], cpu))


def _idle_ticks() -> dict[int, int]:
    """Return for how many ticks each CPU has been idle; empty where nobody tells."""
    ticks: dict[int, int] = {}
    with suppress(OSError, ValueError, IndexError), open(STAT, "rb") as stream:
        for line in stream:
            if not line.startswith(b"cpu"):
                break
            words = line.split()
            if words[0] != b"cpu":
                ticks[int(words[0][3:])] = int(words[IDLE]) + int(words[WAITS_FOR_DISKS])
    return ticks
