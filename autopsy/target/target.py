"""One process, held by a pidfd so that its number can never come to mean another."""

from __future__ import annotations

import errno
import os
import select

from autopsy.bundle.manifest import TargetRecord
from autopsy.bundle.proc_stat import ProcStat
from autopsy.dataclass import dataclass
from autopsy.errors import AmbiguousVm, NoSuchVm, NotQemu
from autopsy.target import identity, qemu_processes, resolve
from autopsy.target.identify import recognise
from autopsy.target.platforms.platform import ROOTS, Roots
from autopsy.target.qemu_process import NOT_ASKED, QemuProcess
from autopsy.target.resolve import LIST, Candidate
from autopsy.target.tell_apart import distinction

ANOTHER_PROGRAM = "has started another program"


@dataclass(frozen=True, slots=True)
class Target:
    """The VM's process, and what it told of itself when it was found. `pidfd` stays open while it is captured.

    `environment` is where its environment lies, which the kernel chooses anew for each program that a process starts;
    zeros where that is not known.
    """

    record: TargetRecord
    pidfd: int
    environment: tuple[int, int] = (0, 0)
    process: QemuProcess = NOT_ASKED

    @property
    def pid(self) -> int:
        """Return the process id in our PID namespace."""
        return self.record.pid


def find_target(word: str, roots: Roots = ROOTS) -> Target:
    """Take hold of the VM that the operator means by a VMID, a libvirt name, id or uuid, a PID, or an explicit form.

    The explicit forms are `pve:102`, `libvirt:web1`, `pid:4242` and `qmp:/path.sock`.

    Raises:
        UsageError: the word cannot be meant.
        AmbiguousVm: it means several; each is told in its explicit form.
        NoSuchVm: it means none that runs.
        NotQemu: it means a process that is no QEMU.
        NotPermitted: the kernel does not show it to us.
    """
    candidates = resolve.meant_by(word, roots)
    if len(candidates) > 1:
        processes = qemu_processes.tell([candidate.pid for candidate in candidates])
        listed = "; ".join(
            f"{vm.explicit} (process {vm.pid}) {distinction(vm.pid, processes[vm.pid])}".rstrip() for vm in candidates
        )
        which = " or ".join(candidate.explicit for candidate in candidates)
        raise AmbiguousVm(
            word,
            f"{len(candidates)} virtual machines answer to it: {listed}",
            remedy=f"say which you mean: {which}",
        )
    return hold(candidates[0], asked=word, roots=roots)


def hold(candidate: Candidate, *, asked: str, roots: Roots = ROOTS) -> Target:
    """Take hold of one process: open its pidfd, and tell who it is while nobody else can take its number.

    `asked` is what the operator typed, for the error's words.

    Raises:
        NoSuchVm: there is no such process, or it ended meanwhile.
        NotQemu: it is something else.
        NotPermitted: the kernel does not show it to us.
    """
    pid = candidate.pid
    pidfd = _open(pid, asked)
    try:
        environment = _environment(pid)
        record, process = recognise(candidate, asked=asked, roots=roots)
        if not _same(pid, pidfd, record.start_ticks):
            raise NoSuchVm(asked, f"process {pid} ended while it was looked at", remedy=LIST)  # noqa: TRY301 - see below
        if environment != _environment(pid):
            raise NoSuchVm(asked, f"process {pid} {ANOTHER_PROGRAM} while it was looked at", remedy=LIST)  # noqa: TRY301 - likewise
    except BaseException:  # whatever it is: a descriptor that nobody knows of would stay open
        os.close(pidfd)
        raise
    return Target(record, pidfd, environment, process)


def is_another_program(target: Target, stat: ProcStat) -> bool:
    """Return whether the process has started another program since it was found, by its /proc/PID/stat.

    That one may hold what its user may not see: whoever owns a process may have it start what is root's (setuid).
    """
    known = any(target.environment) and any(stat.environment)  # both are 0 where we may not look, and at its end
    return known and stat.environment != target.environment


def _environment(pid: int) -> tuple[int, int]:
    try:
        return identity.stat_of(f"/proc/{pid}").environment
    except OSError:
        return (0, 0)


def is_alive(target: Target) -> bool:
    """Return whether the process has not ended; a thread that cannot die keeps it alive."""
    return not _ended(target.pidfd)


def ends_within(target: Target, seconds: float) -> bool:
    """Wait at most `seconds` for the process to end, and return whether it has."""
    return _ended(target.pidfd, seconds)


def _open(pid: int, asked: str) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        cause = f"there is no process {pid}"
    except OSError as error:
        leader = _leader_of(pid)
        # EINVAL, and ENOENT since kernel 6.9, where the number is a thread's that leads no process
        if error.errno not in (errno.EINVAL, errno.ENOENT) or leader is None:
            raise
        raise NotQemu(asked, f"{pid} is a thread of process {leader}", remedy=f"give the process: {leader}") from error
    except OverflowError:
        cause = f"{pid} is no process id"
    leader = _leader_of(pid)
    if leader not in (None, pid):
        raise NotQemu(asked, f"{pid} is a thread of process {leader}", remedy=f"give the process: {leader}")
    raise NoSuchVm(asked, cause, remedy=LIST)


def _leader_of(tid: int) -> int | None:
    try:
        with open(f"/proc/{tid}/status", "rb") as stream:
            row = next((line for line in stream if line.startswith(b"Tgid:")), b"")
    except OSError:
        return None
    return int(row.split()[1]) if row else None


def _ended(pidfd: int, seconds: float = 0) -> bool:
    """Return whether a pidfd is readable: the whole process has ended, not its first thread alone."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _same(pid: int, pidfd: int, start_ticks: int) -> bool:
    try:
        return identity.stat_of(f"/proc/{pid}").start_ticks == start_ticks and not _ended(pidfd)
    except OSError:
        return False
