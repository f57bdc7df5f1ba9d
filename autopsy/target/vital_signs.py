"""What a look at /proc shows of a VM that no healthy one shows."""

from __future__ import annotations

import time
from collections import Counter

from autopsy.bundle.proc_stat import ProcStat
from autopsy.dataclass import dataclass
from autopsy.linux.batch import Unanswered
from autopsy.linux.files import read_kernel
from autopsy.target import identity
from autopsy.target.identity import Asleep
from autopsy.target.qemu_process import QemuProcess
from autopsy.text import printable

MOST_THREADS_TOLD = 2
# Kernel 4.20 brought cgroup v2's freezer, whose frozen threads sleep here; v1's are in D, in __refrigerator.
FREEZER = "do_freezer_trap"
SIGKILL = 1 << 8  # in SigPnd and ShdPnd: proc(5) counts signals from bit 0


@dataclass(frozen=True, slots=True)
class Glance:
    """One look at a process. `switches` counts how often its main thread has gone to sleep; `at` is CLOCK_MONOTONIC."""

    at: float
    stat: ProcStat
    threads: tuple[ProcStat, ...]
    asleep: tuple[Asleep, ...]
    wchan: str
    switches: int
    tracer: int
    killed: bool

    @property
    def dying(self) -> bool:
        """Return whether the process has no memory any more, and only its threads or its parent keep it."""
        return self.stat.state in ("Z", "X")


def glance(pid: int, *, at_threads: bool) -> Glance | None:
    """Look at a process by files of /proc that take no lock of its memory map; None when it is gone."""
    try:
        stat = identity.stat_of(f"/proc/{pid}")
        status = _fields(read_kernel(f"/proc/{pid}/status", 1 << 14))
    except (OSError, ValueError, IndexError):
        return None
    threads = identity.threads(pid) if at_threads else ()
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return Glance(
        at=time.monotonic(),
        stat=stat,
        threads=threads,
        asleep=identity.asleep_among(pid, threads),
        wchan=identity.wchan_of(pid, pid),
        switches=int(status.get("voluntary_ctxt_switches", "0")),
        tracer=int(status.get("TracerPid", "0")),
        killed=bool(pending & SIGKILL),
    )


def _fields(status: bytes) -> dict[str, str]:
    lines = status.decode("utf-8", "replace").splitlines()
    return {key: value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def of(first: Glance, second: Glance, process: QemuProcess) -> tuple[str, ...]:
    """Return the signs of trouble in two looks at one process, each in a few words."""
    return (*_of_threads(first, second), *_of_answers(process))


def _of_threads(first: Glance, second: Glance) -> list[str]:
    signs = []
    if second.dying:
        signs.append("killed, but cannot die" if second.asleep else "has ended; its parent has not noticed")
    elif second.killed:
        signs.append("SIGKILL is pending")
    if second.tracer:
        signs.append(f"traced by process {second.tracer}")
    if second.stat.state == "T":
        signs.append("stopped by a signal")
    if second.wchan == FREEZER:
        signs.append("frozen by its cgroup")
    still = first.switches == second.switches and first.wchan == second.wchan
    if still and second.wchan.startswith("futex_"):  # the main loop sleeps in ppoll; a lock is its for microseconds
        signs.append("the main thread waits for a lock")
    if len(second.asleep) > MOST_THREADS_TOLD:
        where = Counter(thread.wchan or "?" for thread in second.asleep).most_common(MOST_THREADS_TOLD)
        signs.append(f"{len(second.asleep)} threads in D ({', '.join(place for place, _ in where)})")
    else:
        signs += [f"{printable(thread.comm)} sleeps in {thread.wchan or '?'}" for thread in second.asleep]
    return signs


def _of_answers(process: QemuProcess) -> list[str]:
    signs = []
    if isinstance(process.binary, Unanswered):
        if process.binary.hung:
            signs.append("its binary's file system does not answer")
    elif process.binary.deleted or process.binary.replaced:
        signs.append("its binary was replaced since it started")
    if isinstance(process.arguments, Unanswered) and process.arguments.hung:
        signs.append("its memory map is locked")
    return signs
