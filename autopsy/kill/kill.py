"""Kills a VM whose evidence is sealed, and makes sure that it is gone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from autopsy.bundle.seal import Sealed
from autopsy.capture.reading.programs import NOGROUP
from autopsy.dataclass import dataclass
from autopsy.errors import NoSuchVm, NotPermitted, StillThere
from autopsy.kill import audit_log
from autopsy.kill.audit_log import StuckThread
from autopsy.kill.leftover_resources import Estate, estate_of, left_by
from autopsy.linux import environment
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.tasks.forking import die_with_parent
from autopsy.target import identity
from autopsy.target.identity import Asleep
from autopsy.target.platforms.catalogue import platform_of
from autopsy.target.platforms.platform import ROOTS, Roots
from autopsy.target.resolve import has_a_say
from autopsy.target.target import Target
from autopsy.text import printable

DEATH_SECONDS = 10.0
ALONE_SECONDS = 2.0  # for `virsh destroy` by itself: it sends SIGTERM, and SIGKILL only 10 s later
BOOKS_SECONDS = 3.0  # for libvirt to finish its books once the process is gone
LOOK_SECONDS = 0.05
TICK_SECONDS = 0.2
BINARY_SECONDS = 2.0
# `virsh destroy` would have libvirtd wait with the domain's lock held, then touch the storage that hangs: `virsh list`
# hung for as long. Without it, libvirtd is well, and closes its books when the monitor closes.
ASLEEP = "a thread sleeps uninterruptibly"


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of the process. `stuck` are the threads that keep it, where it is not gone.

    `left` is what it left behind: sockets, pidfiles, locks, processes in its cgroup. `by_itself` says that it had ended
    before, and that nothing was sent.
    """

    how: str
    gone: bool
    ms: float = 0.0
    stuck: tuple[Asleep, ...] = ()
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    by_itself: bool = False

    @property
    def words(self) -> str:
        """Return it as one line for the operator."""
        if self.gone:
            return f"{self.how}; gone after {self.ms:.0f} ms" if self.ms else self.how
        why = _in_groups(self.stuck) or "the kernel is still taking it apart"
        return f"{self.how}; still there after {self.ms / 1e3:.0f} s: {why}"


def _in_groups(stuck: Sequence[Asleep]) -> str:
    """Return which threads sleep, those that are called alike and sleep alike by their number."""
    if len(stuck) == 1:
        return f"thread {stuck[0].tid} ({printable(stuck[0].comm)}) in {stuck[0].wchan or '?'} sleeps uninterruptibly"
    groups = Counter((thread.comm, thread.wchan or "?") for thread in stuck)
    crowds = (f"{count} {printable(comm)} threads in {place}" for (comm, place), count in groups.items())
    return f"{', '.join(crowds)} sleep uninterruptibly" if stuck else ""


def kill(
    target: Target,
    sealed: Sealed,
    *,
    seconds: float = DEATH_SECONDS,
    program: str = "",
    roots: Roots = ROOTS,
    tell: Callable[[str], None] = lambda _: None,
) -> Killed:
    """Kill the VM whose evidence is sealed: through its manager if that can do it, by SIGKILL in any case.

    `program` stands in for the manager's own. `tell` is given how it goes, several times a second. The seal is the
    licence: there is no calling this without one.
    SIGTERM is left out: a wedged QEMU does not heed it.

    Raises:
        NoSuchVm: the number means another program by now; nothing was killed.
        NotPermitted: the kernel does not let us.
    """
    if _has_ended(target):
        return Killed("it had ended by itself before the kill", gone=True, by_itself=True)
    _make_sure(target)
    estate = estate_of(target, platform_of(target.record.manager).locks(target.record.name))
    note = audit_log.begun(target, sealed)
    unwritten, untold = audit_log.store(note, sealed.path), audit_log.tell_journal(note, roots.log)
    begun = time.monotonic()
    how, ended = _end(target, begun + seconds, _Means(program, roots, lambda: tell(_so_far(target, begun))))
    gone = _has_ended(target)
    left = _left(target, estate) if gone else ()
    stuck_now = () if gone else identity.in_uninterruptible_sleep(target.pid)
    killed = Killed(how, gone, (ended - begun) * 1e3, stuck_now, left=left)
    stuck = tuple(StuckThread(tid=thread.tid, comm=thread.comm, wchan=thread.wchan) for thread in killed.stuck)
    done = msgspec.structs.replace(note, how=killed.words, gone=gone, ms=round(killed.ms, 1), stuck=stuck, left=left)
    unwritten = unwritten or audit_log.store(done, sealed.path)  # what failed once is not waited for again
    untold = untold or audit_log.tell_journal(done, roots.log)
    return replace(killed, notes=tuple(filter(None, (unwritten, untold))))


def means(target: Target, roots: Roots = ROOTS) -> str:
    """Return by what means a kill would end the VM, without doing it."""
    command = _command_for(target, roots)
    if not command:
        return "SIGKILL"
    return f"{platform_of(target.record.manager).end_words} {command[-1]}, then SIGKILL"


def still_there(target: Target, killed: Killed) -> StillThere:
    """Return the error that says why a killed process has not gone, and what would let it go."""
    return StillThere(
        target.record.name,
        killed.words,
        remedy="the signal is pending: it ends by itself once the storage that those threads wait for answers or fails",
    )


def _left(target: Target, estate: Estate) -> tuple[str, ...]:
    """Return what is left once its manager has had a moment to clean up: qmeventd runs `qm cleanup`, libvirtd its own.

    A plain process has nobody who would: what it leaves is told at once.
    """
    give_up = time.monotonic() + platform_of(target.record.manager).cleanup_seconds
    while left := left_by(estate):
        if time.monotonic() >= give_up:
            break
        time.sleep(LOOK_SECONDS)
    return left


def _make_sure(target: Target) -> None:
    """Compare the process with the one that was captured: its start, and what it runs.

    Raises:
        NoSuchVm: it is another one.
        NotPermitted: it is not ours to signal.
    """
    captured = target.record
    try:
        signal.pidfd_send_signal(target.pidfd, 0)  # asks for permission, and sends nothing
        started = identity.stat_of(f"/proc/{target.pid}").start_ticks
        path = identity.clean(identity.exe_link(target.pid)).removesuffix(identity.DELETED)
    except (FileNotFoundError, ProcessLookupError):
        return  # its memory is gone already: it is dying, and the pidfd cannot mean another process
    except PermissionError as error:
        raise _not_permitted(target) from error
    if started == captured.start_ticks and path == captured.exe.removesuffix(identity.DELETED):
        return
    # A binary may have been moved; a process that runs another program has another build-id.
    if started == captured.start_ticks and captured.build_id and _build_id(target.pid) == captured.build_id:
        return
    raise NoSuchVm(
        captured.name,
        f"process {target.pid} is no longer what was captured (it runs {printable(path)}); nothing was killed",
        remedy="`autopsy ps` shows what runs now",
    )


def _build_id(pid: int) -> str:
    try:
        return in_child(partial(_read_build_id, pid), BINARY_SECONDS).decode()
    except (ChildTimedOut, ChildFailed):
        return ""


def _read_build_id(pid: int) -> bytes:
    return identity.binary_of(pid).build_id.encode()


@dataclass(frozen=True, slots=True)
class _Means:
    """By what a VM is ended: `program` stands in for its manager's own; `tick` is called while we wait."""

    program: str
    roots: Roots
    tick: Callable[[], None]


def _so_far(target: Target, begun: float) -> str:
    """Return how the end of a process goes."""
    passed = f"{time.monotonic() - begun:.1f} s"
    stuck = identity.in_uninterruptible_sleep(target.pid)
    if not stuck:
        return f"{passed}, the process is still there"
    where = Counter(thread.wchan or "?" for thread in stuck).most_common(1)[0][0]
    return f"{passed}, {len(stuck)} {'thread' if len(stuck) == 1 else 'threads'} still in D ({printable(where)})"


def _end(target: Target, give_up: float, means: _Means) -> tuple[str, float]:
    """Have the process ended; return by what means, and when it was gone or given up."""
    how = "SIGKILL"
    command = _command_for(target, means.roots)
    platform = platform_of(target.record.manager)
    try:
        if command and identity.in_uninterruptible_sleep(target.pid):
            how = f"SIGKILL ({platform.end_words} would hang {platform.daemon}: {ASLEEP})"
        elif command:
            domain = target.record.domain
            with _running((means.program or command[0], *command[1:]), domain.user if domain else None) as destroy:
                return _end_with(destroy, platform.end_words, target, give_up, means.tick)
    except OSError as error:
        how = f"SIGKILL (no {command[0]}: {error.strerror})"
    _send(target)
    _wait(target, give_up, means.tick)
    return how, time.monotonic()


def _end_with(
    destroy: subprocess.Popen[bytes], spoken: str, target: Target, give_up: float, tick: Callable[[], None]
) -> tuple[str, float]:
    """Leave libvirt a moment to do it, then do it ourselves while libvirt keeps its books of a domain destroyed."""
    alone = min(time.monotonic() + ALONE_SECONDS, give_up)
    while not _wait(target, min(time.monotonic() + LOOK_SECONDS, alone)):
        tick()
        if time.monotonic() >= alone or destroy.poll() not in (None, 0):
            break
    how = spoken
    if not _has_ended(target):
        how = f"{spoken} and SIGKILL" if destroy.poll() in (None, 0) else f"SIGKILL ({spoken} failed)"
        _send(target)
        _wait(target, give_up, tick)
    ended = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        destroy.wait(BOOKS_SECONDS if _has_ended(target) else 0)
    return how, ended


@contextlib.contextmanager
def _running(command: Sequence[str], user: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the manager's command, and end it with what it started on the way out."""
    destroy = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment.ours(PATH=environment.path(), LC_ALL="C"),
        cwd="/",
        start_new_session=True,
        user=user,
        group=None if user is None else NOGROUP,
        extra_groups=None if user is None else (),
        preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
    )
    try:
        yield destroy
    finally:
        if destroy.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(destroy.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # asleep in the kernel: its parent's end reaps it
                destroy.wait(LOOK_SECONDS)


def _command_for(target: Target, roots: Roots) -> tuple[str, ...]:
    """Return how its manager ends this VM, empty where it cannot, or no longer means this very process.

    A domain that was started anew meanwhile has another pid, and must not be destroyed in its place. A container's
    libvirt is not asked: who owns the container could make our question mean another domain; it notices the end.
    """
    platform = platform_of(target.record.manager)
    command = platform.end(target.record)
    if not command:
        return ()
    mine = (claim for claim in platform.claims((), roots) if claim.pid == target.pid and has_a_say(claim))
    return command if any(platform.domain_of(claim, roots) == target.record.domain for claim in mine) else ()


def _send(target: Target) -> None:
    try:
        signal.pidfd_send_signal(target.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError as error:
        raise _not_permitted(target) from error


def _not_permitted(target: Target) -> NotPermitted:
    return NotPermitted(
        target.record.name,
        f"the kernel does not let us kill process {target.pid}",
        remedy="run as root, or as the user that it runs as",
    )


def _has_ended(target: Target) -> bool:
    return _wait(target, 0)


def _wait(target: Target, until: float, tick: Callable[[], None] | None = None) -> bool:
    """Wait for the end of every thread of the process; its pidfd is readable from then on."""
    poller = select.poll()
    poller.register(target.pidfd, select.POLLIN)
    while True:
        left = max(0.0, until - time.monotonic())
        if poller.poll((left if tick is None else min(left, TICK_SECONDS)) * 1000):
            return True
        if tick is None or not left:
            return False
        tick()
