"""Every QEMU of this host at a glance, without asking or stopping any."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial

from autopsy.bundle.manifest import Manager, MonitorSocket, Program
from autopsy.dataclass import dataclass
from autopsy.linux.batch import Unanswered, ask
from autopsy.linux.unix_sockets import Listener, listeners_seen_by
from autopsy.target import coroutine_count, monitors, qemu_processes
from autopsy.target import vital_signs as signs
from autopsy.target.command_line import disks, vm_name
from autopsy.target.identity import STORAGE_DAEMON, clean
from autopsy.target.platforms.catalogue import explicit
from autopsy.target.platforms.owned import started_by
from autopsy.target.platforms.plain import PLAIN
from autopsy.target.platforms.platform import ROOTS, Roots, VmClaim
from autopsy.target.qemu_process import QemuProcess, is_qemu
from autopsy.target.resolve import all_claims, is_true
from autopsy.target.vital_signs import Glance, glance

EACH = 0.3  # seconds for one question about one process
OVERALL = 2.0
APART_SECONDS = 0.1  # between the two looks at a process, at least
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVm:
    """One VM, or a storage daemon. `target` is the word that means it alone.

    `disks` is absent where its command line could not be read. `state` is the main thread's letter of proc(5).
    `cpu_percent` is of one processor, over the tenth of a second that the look took. `parked_requests` are the
    coroutines under way but for the monitor's own, absent where they could not be counted. `signs` are words about
    what a healthy VM does not show. `oldest_request_seconds` is for how long a request has not moved, 0 where all do,
    absent where no watch runs.
    """

    target: str
    manager: Manager
    name: str
    pid: int
    program: Program
    qemu_version: str
    binary_replaced: bool
    state: str
    threads: int
    threads_in_d: int
    cpu_percent: float
    disks: int | None
    monitors: tuple[MonitorSocket, ...]
    signs: tuple[str, ...]
    parked_requests: int | None = None
    start_ticks: int = 0
    oldest_request_seconds: float | None = None


def census(roots: Roots = ROOTS) -> tuple[ListedVm, ...]:
    """Return every VM that runs on this host, by PID; nothing is asked of any of them."""
    named = qemu_processes.suspects()
    claims = all_claims(named, roots)
    pids = sorted({*named, *(claim.pid for claim in claims)})
    begun = time.monotonic()
    first = {pid: seen for pid in pids if (seen := glance(pid, at_threads=False)) is not None}
    processes = qemu_processes.tell(tuple(first), each=EACH, overall=OVERALL)
    listeners = _Listeners()
    known = {
        pid: monitors.found_listening(processes[pid].options, monitors.ears_of(pid, listeners.around(pid)))
        for pid in first
        if is_qemu(processes[pid]) or first[pid].dying
    }
    counts = [partial(coroutine_count.count, pid) for pid in known]
    owners = [started_by(pid) for pid in known]
    requests = dict(zip(known, ask(counts, each=EACH, overall=OVERALL, owners=owners), strict=True))
    time.sleep(max(0.0, begun + APART_SECONDS - time.monotonic()))
    vms = []
    for pid, sockets in known.items():
        second = glance(pid, at_threads=True)
        if second is None or second.stat.start_ticks != first[pid].stat.start_ticks:
            continue  # it ended while we looked
        claim = next((claim for claim in claims if claim.pid == pid and is_true(claim, processes[pid])), None)
        vm = _vm(first[pid], second, processes[pid], claim, sockets)
        # A storage daemon has a coroutine for each client that asks for nothing: they cannot be told from requests.
        counted = Unanswered("its idle clients count, too") if vm.program == STORAGE_DAEMON else requests[pid]
        vms.append(vm if isinstance(counted, Unanswered) else replace(vm, parked_requests=int(counted)))
    return tuple(vms)


class _Listeners:
    """The listening sockets of each network namespace, read once for all the processes that share it."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Listener, ...]] = {}

    def around(self, pid: int) -> tuple[Listener, ...]:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/net")
            if namespace not in self.known:
                self.known[namespace] = listeners_seen_by(pid)
        except OSError:
            return ()
        return self.known[namespace]


def _vm(
    first: Glance, second: Glance, process: QemuProcess, claim: VmClaim | None, sockets: tuple[MonitorSocket, ...]
) -> ListedVm:
    pid = second.stat.pid
    binary = None if isinstance(process.binary, Unanswered) else process.binary
    seconds = max(second.at - first.at, APART_SECONDS)
    return ListedVm(
        target=explicit(claim) if claim else f"pid:{pid}",
        manager=claim.manager if claim else PLAIN.manager,
        name=clean(claim.name if claim else (vm_name(process.options or ()) or f"pid{pid}")),
        pid=pid,
        program=binary.program if binary else "qemu-system",
        qemu_version=binary.qemu_version if binary else "",
        binary_replaced=binary is not None and (binary.deleted or binary.replaced),
        state=second.stat.state,
        threads=len(second.threads),
        threads_in_d=len(second.asleep),
        cpu_percent=round((second.stat.cpu_ticks - first.stat.cpu_ticks) / CLOCK_TICKS / seconds * 100, 1),
        disks=None if process.options is None else disks(process.options),
        monitors=tuple(monitors.storable(monitor) for monitor in sockets),
        signs=signs.of(first, second, process),
        start_ticks=second.stat.start_ticks,
    )
