"""Lets our work run behind everybody else's, and brings it forward again where it would never end so.

A process that steps back runs when no other wants the CPU, and its disk requests come last of the ordinary ones (not
idle: whoever waits for a disk that is never idle waits for ever). What it starts later is as it is.

That is for work on bytes that are ours already. Whoever reads a living process, or the kernel's own tables, holds locks
that a VM may want, and must not be put aside with them.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autopsy.linux.tasks import autogroup, cpus
from autopsy.linux.tasks.autogroup import LAST, ORDINARY

RETURNS = 20  # less its nice value: RLIMIT_NICE of whoever may come back from SCHED_IDLE to an ordinary priority
CAP_SYS_NICE = 23

IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IOPRIO_WHO_PROCESS = 1
BEST_EFFORT = 2 << 13  # class and level, see ioprio_set(2)
LAST_LEVEL, NO_CLASS = BEST_EFFORT | 7, 0

LOOK_SECONDS = 0.3  # between two looks at whether it starves
WAITED_NS = 150_000_000  # since the last look, by all of its processes together, before it counts as starved
SHARE = 2.0  # times as long as it ran
LEAST_CPU = 0.25  # of one: with as much it is slow, for many of its processes share it, and not starved

_libc = ctypes.CDLL(None, use_errno=True)
_came_forward: dict[int, tuple[int, int]] = {}  # by process: what it had met by then


def may_return() -> bool:
    """Return whether this process could come forward again: nobody steps back for good."""
    import resource  # noqa: PLC0415 - only who has no right to it needs it

    if _may_rank():
        return True
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return soft == resource.RLIM_INFINITY or soft >= RETURNS - os.getpriority(os.PRIO_PROCESS, 0)


def _may_rank() -> bool:
    """Return whether we have CAP_SYS_NICE: a unit's root, or a container's, may have none."""
    try:
        with open("/proc/self/status", "rb") as stream:
            held = stream.read().partition(b"\nCapEff:")[2].split(maxsplit=1)[0]
        return bool(int(held, 16) >> CAP_SYS_NICE & 1)
    except (OSError, ValueError, IndexError):
        return os.geteuid() == 0


def step_back() -> None:
    """Have this process, the first of its session, run behind all others, as far as the kernel lets it."""
    _place(os.getpid(), os.SCHED_IDLE, LAST, LAST_LEVEL)


def step_forward(pid: int = 0) -> None:
    """Have a process, or this one, run as any other again, as far as the kernel lets it."""
    _place(pid or os.getpid(), os.SCHED_OTHER, ORDINARY, NO_CLASS)


@contextmanager
def behind_others(*, wanted: bool) -> Iterator[None]:
    """Run behind all others for a while, if that is wanted, in a process that is the first of its session.

    Its group weighs what it did before afterwards; as much as any, where it was brought forward meanwhile.
    """
    if not wanted:
        yield
        return
    nice = autogroup.nice_of()
    step_back()
    try:
        yield
    finally:
        nice = nice if autogroup.nice_of() == LAST else ORDINARY
        for pid in _of_session(os.getpid()):  # what leads one of its own stays behind until it ends
            _place(pid, os.SCHED_OTHER, nice, NO_CLASS)


def bring_forward(first: int) -> None:
    """Have a process and all that it has started run as any other, on any CPU."""
    for pid in _with_descendants(first):
        cpus.give_back(pid)
        step_forward(pid)


def come_forward() -> bool:
    """Take an ordinary priority where we were started with a low one and starve by it; return whether we did.

    Beside programs that compute, one with a nice of 19 gets a thousandth of a CPU, and its evidence is too late.
    """
    low = os.getpriority(os.PRIO_PROCESS, 0) > 0 or os.sched_getscheduler(0) in {os.SCHED_BATCH, os.SCHED_IDLE}
    if not low or (met := spent("self")) is None or met[1] <= max(WAITED_NS, SHARE * met[0]):
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:  # not root's
        return False
    _place(os.getpid(), os.SCHED_OTHER, ORDINARY, NO_CLASS)
    _came_forward[os.getpid()] = met
    return True


def met_since() -> tuple[int, int]:
    """Return what `spent` does of this process since it came forward, else since its start; zeros where nobody tells.

    How slow it was before says nothing of how slow it will be.
    """
    ran, waited = spent("self") or (0, 0)
    ran_before, waited_before = _came_forward.get(os.getpid(), (0, 0))
    return max(0, ran - ran_before), max(0, waited - waited_before)


def _place(pid: int, policy: int, group: bytes, disk: int) -> None:
    with suppress(OSError):
        os.sched_setscheduler(pid, policy, os.sched_param(0))
    autogroup.set_nice(group, pid)
    if (number := IOPRIO_SET.get(os.uname().machine)) is not None:
        _libc.syscall(number, IOPRIO_WHO_PROCESS, pid, disk)


class BackgroundChild:
    """A child that has stepped back, or keeps to some CPUs. Whoever waits for it lets it `look`, again and again.

    `forward` says that it was brought forward, with all that it has started: it starved.
    """

    def __init__(self, pid: int) -> None:
        self.forward = False
        self._pid = pid
        self._looked = time.monotonic()
        self._met: dict[int, tuple[int, int]] = {}

    def look(self) -> None:
        """Bring it forward if it waits for a CPU far longer than it has one."""
        passed = time.monotonic() - self._looked
        if self.forward or passed < LOOK_SECONDS:
            return
        self._looked += passed
        now = {pid: met for pid in _with_descendants(self._pid) if (met := spent(pid)) is not None}
        ran = sum(met[0] - self._met.get(pid, (0, 0))[0] for pid, met in now.items())
        waited = sum(met[1] - self._met.get(pid, (0, 0))[1] for pid, met in now.items())
        self._met = now
        if waited > max(WAITED_NS, SHARE * ran) and ran < LEAST_CPU * passed * 1e9:
            self.forward = True
            bring_forward(self._pid)


def spent(pid: int | str) -> tuple[int, int] | None:
    """Return for how many ns a process's main thread ran so far, and waited to run; None where nobody tells."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as stream:
            ran, waited = stream.read().split()[:2]
            return int(ran), int(waited)
    except (OSError, ValueError):  # it has ended, or the kernel has no CONFIG_SCHED_INFO
        return None


def _with_descendants(first: int) -> Iterator[int]:
    """Yield a process and all that it has started, whatever session they lead.

    A kernel without CONFIG_PROC_CHILDREN does not tell them: there it is those of its session.
    """
    waiting = [first]
    while waiting:
        pid = waiting.pop()
        yield pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", "rb") as stream:
                waiting += map(int, stream.read().split())
        except FileNotFoundError:
            if os.path.exists(f"/proc/{pid}"):
                yield from (other for other in _of_session(first) if other != first)
                return
        except (OSError, ValueError):  # it has ended
            pass


def _of_session(session: int) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                if os.getsid(int(name)) == session:
                    yield int(name)
