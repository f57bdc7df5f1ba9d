"""Which VMs of this host look stuck, by two looks from outside a second apart: none is asked, none is stopped."""

from __future__ import annotations

import time
from enum import Enum
from functools import partial

from autopsy.dataclass import dataclass
from autopsy.linux.batch import Answer, Unanswered, ask
from autopsy.linux.files import read_kernel
from autopsy.target import coroutine_count
from autopsy.target.identity import STORAGE_DAEMON
from autopsy.target.platforms.owned import started_by
from autopsy.target.platforms.platform import ROOTS, Roots
from autopsy.target.ps import EACH, OVERALL, ListedVm, census
from autopsy.target.vital_signs import FREEZER, Glance, glance

APART_SECONDS = 1.0
STOPPED = frozenset("Tt")
DEAD = frozenset("ZX")


class Sign(Enum):
    """What no VM shows that is well, for a second."""

    DYING = "was killed, and cannot die"
    STOPPED = "is stopped by a signal or a debugger"
    FROZEN = "is frozen by its control group"
    LOCKED = "its main thread waits for a lock"
    ASLEEP = "threads sleep uninterruptibly"
    REQUESTS = "block requests do not move"


@dataclass(frozen=True, slots=True)
class Stall:
    """A VM that looks stuck, and by what; `count` is of the threads or the requests, 0 where nothing is counted."""

    vm: ListedVm
    sign: Sign
    count: int = 0

    @property
    def words(self) -> str:
        """Return why, in a few words."""
        return f"{self.count} {self.sign.value}" if self.count else self.sign.value


@dataclass(frozen=True, slots=True)
class _Look:
    """One look: the process, what each thread in D has run until then, and the stacks of its requests."""

    process: Glance
    asleep: frozenset[tuple[int, bytes]]
    requests: frozenset[bytes]


def stalled(roots: Roots = ROOTS) -> tuple[Stall, ...]:
    """Return every VM that looks stuck, those with a thread that cannot be killed first.

    A VM that is paused on purpose does not look so; one whose requests are merely slow may. What is a zombie already
    holds no evidence.
    """
    vms = {vm.pid: vm for vm in census(roots) if vm.state not in DEAD or vm.threads_in_d}
    first = _look_at(vms)
    time.sleep(APART_SECONDS)
    second = _look_at({pid: vms[pid] for pid in first})
    stalls = [
        stall
        for pid, late in second.items()
        if late.process.stat.start_ticks == first[pid].process.stat.start_ticks
        and (stall := _stall(vms[pid], first[pid], late)) is not None
    ]
    order = list(Sign)
    return tuple(sorted(stalls, key=lambda stall: (order.index(stall.sign), -stall.count, stall.vm.pid)))


def _look_at(vms: dict[int, ListedVm]) -> dict[int, _Look]:
    questions = [partial(coroutine_count.stacks, pid) for pid in vms]
    answers = ask(questions, each=EACH, overall=OVERALL, owners=[started_by(pid) for pid in vms])
    return {
        pid: _Look(
            seen,
            frozenset((thread.tid, _has_run(pid, thread.tid)) for thread in seen.asleep),
            _requests(vms[pid], answer),
        )
        for pid, answer in zip(vms, answers, strict=True)
        if (seen := glance(pid, at_threads=True)) is not None
    }


def _requests(vm: ListedVm, answer: Answer) -> frozenset[bytes]:
    """Return a line for each request; a storage daemon's idle clients cannot be told from them."""
    if isinstance(answer, Unanswered) or vm.program == STORAGE_DAEMON:
        return frozenset()
    return frozenset(answer.splitlines())


def _has_run(pid: int, tid: int) -> bytes:
    """Return how often a thread went to sleep: the same twice says that it has slept through."""
    try:
        status = read_kernel(f"/proc/{pid}/task/{tid}/status", 1 << 14)
    except OSError:
        return b""
    return b"".join(line for line in status.splitlines() if b"ctxt_switches" in line)


def _stall(vm: ListedVm, first: _Look, second: _Look) -> Stall | None:
    early, late = first.process, second.process
    asleep = len(first.asleep & second.asleep)
    if asleep and (late.killed or late.dying):
        return Stall(vm, Sign.DYING)
    if {early.stat.state, late.stat.state} <= STOPPED:
        return Stall(vm, Sign.STOPPED)
    if early.wchan == late.wchan == FREEZER:
        return Stall(vm, Sign.FROZEN)
    if early.switches == late.switches and early.wchan == late.wchan and late.wchan.startswith("futex_"):
        return Stall(vm, Sign.LOCKED)
    if asleep:
        return Stall(vm, Sign.ASLEEP, asleep)
    unmoved = len(first.requests & second.requests) - 1  # but for the monitor's dispatcher
    return Stall(vm, Sign.REQUESTS, unmoved) if unmoved > 0 else None
