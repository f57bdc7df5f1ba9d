"""What a process must show to be taken for a QEMU, and what is said when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import msgspec

from autopsy.bundle.manifest import MonitorSocket, TargetRecord
from autopsy.errors import NoSuchVm, NotPermitted, NotQemu
from autopsy.linux.batch import Answer, Unanswered, ask
from autopsy.linux.trouble import FailureKind
from autopsy.target import identity, monitors, qemu_processes
from autopsy.target.command_line import vm_name
from autopsy.target.identity import Binary, clean
from autopsy.target.image import named_like_qemu
from autopsy.target.permissions import explain, guards_of
from autopsy.target.platforms.catalogue import platform_of
from autopsy.target.platforms.plain import PLAIN
from autopsy.target.platforms.platform import Roots
from autopsy.target.qemu_process import QemuProcess
from autopsy.target.resolve import LIST, Candidate, is_true
from autopsy.text import printable

PATIENCE = 0.2  # seconds for what has hung before


def recognise(candidate: Candidate, *, asked: str, roots: Roots) -> tuple[TargetRecord, QemuProcess]:
    """Return what is to be recorded of a QEMU, and what it tells of itself.

    `asked` is what the operator typed, for the error's words.

    The caller makes sure that the number means one process all the while.

    Raises:
        NoSuchVm: the process ended, or is about to.
        NotQemu: it is something else.
        NotPermitted: the kernel does not show it to us.
    """
    pid, claim = candidate.pid, candidate.claim
    try:
        stat = identity.stat_of(f"/proc/{pid}")
        link = identity.exe_link(pid)
    except PermissionError as error:
        raise _not_permitted(pid, asked) from error
    except OSError as error:
        raise _without_binary(pid, asked) from error
    process = qemu_processes.tell([pid], each=PATIENCE if candidate.hangs else qemu_processes.EACH)[pid]
    access, reached = _reach(pid, process)
    if isinstance(access, Unanswered) and access.trouble is FailureKind.NOT_PERMITTED:
        raise _not_permitted(pid, asked)
    if claim is not None and not is_true(claim, process):
        raise NoSuchVm(asked, f"{claim.pidfile} names process {pid}, which is no longer that VM", remedy=LIST)
    binary = _as_named(link) if isinstance(process.binary, Unanswered) else process.binary
    if binary is None or not (binary.qemu_version or isinstance(process.binary, Unanswered)):
        raise _not_qemu(pid, asked, stat.comm, link)
    record = TargetRecord(
        pid=pid,
        name=clean(claim.name if claim else (vm_name(process.options or ()) or f"pid{pid}")),
        manager=claim.manager if claim else PLAIN.manager,
        start_ticks=stat.start_ticks,
        exe=binary.path,
        exe_deleted=binary.deleted,
        build_id=binary.build_id,
        qemu_version=binary.qemu_version,
        program=binary.program,
        monitors=reached,
        domain=platform_of(claim.manager).domain_of(claim, roots) if claim else None,
    )
    return record, process


def _as_named(link: str) -> Binary | None:
    """Take a process for the QEMU it is named as, where its binary's file system hangs."""
    path = link.removesuffix(identity.DELETED)
    if not named_like_qemu(link):
        return None
    return Binary(path=clean(path), deleted=path != link, replaced=False, qemu_version="", build_id="")


def _try_access(pid: int) -> bytes:
    """Open the process's memory: the same question to the kernel as ptrace(2) would put, with no effect at all."""
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    return b""


def _reach(pid: int, process: QemuProcess) -> tuple[Answer, tuple[MonitorSocket, ...]]:
    """Ask whether we may look into the process, and which of its monitors can be reached, in one child."""
    ears = monitors.ears_of(pid)
    sockets = monitors.found_listening(process.options, ears)
    questions = [partial(_encoded, monitors.reached, monitor, ears) for monitor in sockets]
    held = [partial(_encoded, monitors.reached_and_held, monitor, ears) for monitor in sockets]
    access, *answers = ask(
        [partial(_try_access, pid), *questions, *held], each=qemu_processes.EACH, overall=qemu_processes.OVERALL
    )
    best = zip(sockets, answers[: len(sockets)], answers[len(sockets) :], strict=True)
    return access, tuple(monitors.storable(_last_of(*answers)) for answers in best)


def _encoded(
    what: Callable[[MonitorSocket, monitors.Ears], MonitorSocket], monitor: MonitorSocket, ears: monitors.Ears
) -> bytes:
    return msgspec.msgpack.encode(what(monitor, ears))


def _last_of(socket: MonitorSocket, *answers: Answer) -> MonitorSocket:
    """Return the fullest of what is known of a monitor."""
    good = [answer for answer in answers if not isinstance(answer, Unanswered)]
    return msgspec.msgpack.decode(good[-1], type=MonitorSocket) if good else socket


def _not_qemu(pid: int, asked: str, comm: str, link: str) -> NotQemu:
    return NotQemu(asked, f"process {pid} is {printable(comm)} ({printable(link)}), which is no QEMU", remedy=LIST)


def _without_binary(pid: int, asked: str) -> NoSuchVm | NotPermitted:
    """Say why a process shows no binary: it is dying, dead, hidden, or the kernel's own."""
    try:
        stat = identity.stat_of(f"/proc/{pid}")
    except OSError:
        if identity.exists(pid):  # /proc is mounted with hidepid
            return _not_permitted(pid, asked)
        return NoSuchVm(asked, f"process {pid} has just ended", remedy=LIST)
    if stat.state not in ("Z", "X"):
        return NotQemu(asked, f"process {pid} is the kernel's own thread {stat.comm}", remedy=LIST)
    stuck = identity.in_uninterruptible_sleep(pid)
    if not stuck:
        return NoSuchVm(
            asked, f"process {pid} ({printable(stat.comm)}) has ended and waits for its parent", remedy=LIST
        )
    threads = ", ".join(f"{thread.tid} in {thread.wchan or 'the kernel'}" for thread in stuck)
    return NoSuchVm(
        asked,
        f"process {pid} ({printable(stat.comm)}) is killed already and cannot die: thread {threads} sleeps for good",
        remedy="free the storage it waits for; there is nothing left in it to capture",
    )


def _not_permitted(pid: int, asked: str) -> NotPermitted:
    reason, remedy = explain(guards_of(pid))
    cause = f"the kernel does not let us look into process {pid}"
    return NotPermitted(asked, f"{cause} ({reason})" if reason else cause, remedy=remedy)
