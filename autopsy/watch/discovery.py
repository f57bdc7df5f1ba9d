"""Which VMs run on this host now, each asked once who it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import field

import psutil

from autopsy.bundle.manifest import Manager
from autopsy.dataclass import dataclass
from autopsy.linux.batch import Unanswered
from autopsy.target import identity, qemu_processes
from autopsy.target.command_line import last, vm_name
from autopsy.target.identity import clean
from autopsy.target.platforms.catalogue import explicit, platform_of
from autopsy.target.platforms.plain import PLAIN
from autopsy.target.platforms.platform import ROOTS, Roots, VmClaim
from autopsy.target.qemu_process import QemuProcess, is_qemu
from autopsy.target.resolve import all_claims, is_true

MOST_ASKED = 3  # times that a process is asked who it is, where it does not answer
YOUNGEST = 1.0  # seconds, of which a QEMU that is only asked for its version or devices lives less
CLAIMED_BY = 20.0  # seconds after its start, in which its manager may still be writing down that it is its
REST = 3.0  # times what asking took last, before the young are asked again: who is slow to tell holds up all others
TICKS = os.sysconf("SC_CLK_TCK")
KTHREADD = 2
UNNAMED = "unnamed"
Key = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVm:
    """A VM that was found: its process by PID and start, and what it is called by whom."""

    pid: int
    start_ticks: int
    name: str
    target: str
    manager: Manager
    domain: str = ""
    vmid: str = ""
    uuid: str = ""
    qemu_version: str = ""

    @property
    def key(self) -> Key:
        """Return what tells the process from a later one of its number."""
        return (self.pid, self.start_ticks)


@dataclass(slots=True)
class Discovery:
    """The VMs that are known, and the processes that are none though they are named so.

    Where `only` names processes, no other is looked at. `older` were there at the look at all of them before the last,
    `newer` at the last; `unclaimed` are young and no manager's yet.
    """

    roots: Roots = ROOTS
    only: frozenset[int] = frozenset()
    vms: dict[Key, FoundVm] = field(default_factory=dict)
    asked: dict[Key, int] = field(default_factory=dict)
    older: frozenset[int] = frozenset()
    newer: frozenset[int] = frozenset()
    unclaimed: set[Key] = field(default_factory=set)
    rests_until: float = 0.0

    def refresh(self) -> None:
        """Look for VMs that have begun or ended since, among all processes.

        Concurrency: it forks where a process is new, so it is for a process with one thread.
        """
        pids = self.only or frozenset(psutil.pids())
        self.older, self.newer = self.newer, pids
        present = _present(self.only or qemu_processes.suspects(pids))
        self.vms = {key: vm for key, vm in self.vms.items() if key in present}
        again, self.unclaimed = self.unclaimed, set()
        self.asked = {
            key: times - (key in again and times == MOST_ASKED) for key, times in self.asked.items() if key in present
        }
        self._ask(present)

    def refresh_young(self) -> None:
        """Look for VMs among the processes that have begun of late: where there are none, a list of numbers is read.

        Those of before the last look at all are among them, for what begins as another program may become a QEMU.

        Concurrency: as `refresh`.
        """
        if self.only or time.monotonic() < self.rests_until:
            return
        young = _present(qemu_processes.suspects(frozenset(psutil.pids()) - self.older))
        self._ask([key for key in young if _age(key) >= YOUNGEST])

    def _ask(self, present: Iterable[Key]) -> None:
        """Ask who they are those that have not said so yet."""
        new = [key for key in present if self.asked.get(key, 0) < MOST_ASKED]
        if not new:
            return
        began = time.monotonic()
        processes = qemu_processes.tell([pid for pid, _ in new])
        claims = all_claims([pid for pid, _ in new], self.roots)
        for key in new:
            process = processes[key[0]]
            answered = not isinstance(process.arguments, Unanswered) and not isinstance(process.binary, Unanswered)
            self.asked[key] = MOST_ASKED if answered else self.asked.get(key, 0) + 1
            if is_qemu(process):
                claim = next((claim for claim in claims if claim.pid == key[0] and is_true(claim, process)), None)
                self.vms[key] = _found(key, process, claim)
                if claim is None and _age(key) < CLAIMED_BY:
                    self.unclaimed.add(key)
        ended = time.monotonic()
        self.rests_until = ended + REST * (ended - began)


def _present(pids: Iterable[int]) -> tuple[Key, ...]:
    """Return these processes with their starts, but for what has ended, and the kernel's own threads, as kvm's are."""
    keys = []
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            stat = identity.stat_of(f"/proc/{pid}")
            if stat.ppid != KTHREADD:
                keys.append((pid, stat.start_ticks))
    return tuple(keys)


def _age(key: Key) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - key[1] / TICKS


def _found(key: Key, process: QemuProcess, claim: VmClaim | None) -> FoundVm:
    options = process.options or ()
    uuid = clean(last(options, "uuid"))
    manager = claim.manager if claim else PLAIN.manager
    name = clean(claim.name if claim else vm_name(options) or uuid or UNNAMED)
    return FoundVm(
        pid=key[0],
        start_ticks=key[1],
        name=name,
        target=explicit(claim) if claim else f"pid:{key[0]}",
        manager=manager,
        domain=name if claim and not platform_of(manager).numbers_vms else "",
        vmid=name if claim and platform_of(manager).numbers_vms else "",
        uuid=uuid,
        qemu_version="" if isinstance(process.binary, Unanswered) else process.binary.qemu_version,
    )
