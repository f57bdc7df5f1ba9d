"""Forks a child of ours with a pipe each way, and ends it by its pidfd, never waiting for it without end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import math
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable

from autopsy.bundle import proc_stat
from autopsy.bundle.manifest import LeftBehind
from autopsy.dataclass import dataclass
from autopsy.linux.tasks import autogroup

PR_SET_PDEATHSIG = 1
CLONE_NEWPID = 0x20000000
ORPHAN_SECONDS = 10.0  # from the fork to an orphan being one
REAP_SECONDS = 0.5  # from SIGKILL to the child being gone; past it the child sleeps in the kernel
REAP_PAUSE_SECONDS = 0.001
TICK_SECONDS = 0.1
PIPE_BYTES = 1 << 20
A_POLL_SECONDS = 1e6  # that a poll can wait

_PID = struct.Struct("<I")
LENGTH = struct.Struct("<I")  # ahead of each message: its bytes

_libc = ctypes.CDLL(None, use_errno=True)
# Children that were killed and not waited for, or not gone in time: they end later, and are to stay no zombies.
_dying: set[int] = set()
_reaps_late = False


class Overdue(Exception):
    """What a child was to say, or to hear, has not come through in time."""


@dataclass(frozen=True, slots=True)
class PipeEnds:
    """The child's ends of its pipes: what it `hears`, and where it `tells`."""

    hears: int
    tells: int


@dataclass(frozen=True, slots=True)
class Child:
    """A running child: `answers` is the read end of what it says, `questions` the write end of what it hears.

    `pidfd` polls readable once it has ended. What it started is in its session, where it `leads_session`.
    """

    pid: int
    pidfd: int
    answers: int
    questions: int
    leads_session: bool = False


def fork(live: Callable[[PipeEnds], int], *, own_session: bool = False, own_namespace: bool = False) -> Child:
    """Fork a child that runs `live`, exits with what that returns, hears signals as a new program does, dies with us.

    `own_namespace` makes it the first process of a PID namespace, where the kernel lets us: all others end with it.

    Raises:
        OSError: there is no room for another process, or no descriptor for it; nothing of it is left then.

    Concurrency: call it only from a process with one thread.
    """
    reap_the_late()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more: no reason to stop
            stream.flush()
    with contextlib.ExitStack() as opened:
        answers, tells = _pipe(opened)
        hears, questions = _pipe(opened)
        parent = os.getpid()
        pid = _fork_apart() if own_namespace else os.fork()
        if pid == 0:
            _be_the_child(live, PipeEnds(hears, tells), (answers, questions), parent, own_session=own_session)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # nobody has waited for it: the number is its own
            raise
        opened.pop_all()
    os.close(tells)
    os.close(hears)
    return Child(pid, pidfd, answers, questions, own_session)


def fork_orphan(live: Callable[[PipeEnds], int]) -> Child:
    """Fork a process, in a session of its own, that is no descendant of ours: what holds for strangers holds for it.

    It does not die with us, but what it hears ends then.

    Raises:
        OSError: there is no room for another process, or no descriptor for it; nothing of it is left then.

    Concurrency: call it only from a process with one thread.
    """

    def leave(ends: PipeEnds) -> int:
        if os.fork() != 0:
            return 0
        os.setsid()
        send(ends.tells, _PID.pack(os.getpid()))
        return live(ends)

    between = fork(leave)
    try:
        pid, pidfd = _left_by(between)
    except (EOFError, Overdue):
        end(between)
        raise OSError(errno.EAGAIN, "no process could be started") from None
    except BaseException:
        end(between)
        raise
    os.close(between.pidfd)
    return Child(pid, pidfd, between.answers, between.questions, leads_session=True)


def _left_by(between: Child) -> tuple[int, int]:
    pid: int = _PID.unpack(receive(between.answers, _PID.size, time.monotonic() + ORPHAN_SECONDS))[0]
    pidfd = os.pidfd_open(pid)
    if ended(between.pidfd, ORPHAN_SECONDS) is None:  # as long as it lives, it is the orphan's parent
        os.close(pidfd)
        raise Overdue
    return pid, pidfd


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for end_of_it in ends:
        opened.callback(os.close, end_of_it)
    return ends


def widen(pipe: int) -> None:
    """Let a pipe hold a megabyte, where pipe-max-size lets us: else its two ends wait for each other more often."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _fork_apart() -> int:
    """Fork a child that is the first process of a PID namespace, where the kernel lets us."""
    if os.geteuid() != 0:
        return os.fork()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        apart = _libc.unshare(CLONE_NEWPID) == 0
        try:
            pid = os.fork()
        finally:
            if apart and pid != 0:  # also where there was no room for it: our next children belong beside us
                _libc.setns(ours, CLONE_NEWPID)
    finally:
        os.close(ours)
    return pid


def _be_the_child(
    live: Callable[[PipeEnds], int], ends: PipeEnds, not_its_own: tuple[int, ...], parent: int, *, own_session: bool
) -> None:
    global _reaps_late  # noqa: PLW0603 - it is ended itself once it has answered, and could reap nobody any more
    _reaps_late = False
    gc.freeze()  # whatever looks for cycles here would copy every page of ours that it counts references in
    status = 1
    try:
        if own_session:
            nice = autogroup.nice_of()
            os.setsid()
            if nice != autogroup.ORDINARY:  # it is of all that we start, and the new group is not
                autogroup.set_nice(nice)
        _die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in not_its_own:
            os.close(descriptor)
        status = live(ends)
    finally:
        os._exit(status)


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent ends, so that nothing of ours outlives us."""
    _die_with(os.getppid())


def _die_with(parent: int) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() not in {parent, 0}:  # it ended between the fork and the request; 0: it is outside of our namespace
        os._exit(1)


def ended(pidfd: int, seconds: float) -> int | None:
    """Wait for a child's end, reap it, and return its exit code, negative for a signal; None where it runs on.

    Raises:
        ChildProcessError: somebody has reaped it already.
    """
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(seconds * 1000):
        return None
    end = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # by the pidfd: its number may be another child's by now
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def end(child: Child, *, answered: bool = False, seconds: float = REAP_SECONDS) -> LeftBehind | None:
    """SIGKILL the child with all that it started, reap it, and say so if it cannot die.

    Safe to call on a child that has ended already. One that `answered` has ended what it put in groups of their own,
    and is not waited for where this process is to `reap_late`.
    """
    try:
        if child.leads_session:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        if child.leads_session and not answered:  # a program in a group of its own may have started others
            kill_every(lambda pid: os.getsid(pid) == child.pid)
        if answered and _reaps_late:  # to give its memory back takes the kernel a millisecond or two
            _dying.add(child.pid)
            return None
        with contextlib.suppress(ChildProcessError):
            if ended(child.pidfd, seconds) is None:
                _dying.add(child.pid)
                return _asleep(child.pid)
        return None
    finally:
        for descriptor in (child.pidfd, child.answers, child.questions):
            os.close(descriptor)


def has_ended(left_behind: LeftBehind) -> bool:
    """Return whether a child that could not be ended in time has ended since."""
    reap_the_late()
    return left_behind.pid not in _dying


def reap_late() -> None:
    """Have this process not wait for a child that has answered: it is reaped when the next is forked, or when we end.

    That is for who forks again and again in little time, and ends.
    """
    global _reaps_late  # noqa: PLW0603 - of this process, until its end
    _reaps_late = True
    atexit.register(_reap_all)


def reap_the_late() -> None:
    """Reap every child that could not be ended in time, and has ended since; nobody else need think of them."""
    for pid in tuple(_dying):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                _dying.discard(pid)
        except ChildProcessError:  # of our parent
            _dying.discard(pid)


def _reap_all() -> None:
    """Wait for those that were ended and not waited for: who looks once we have ended is to find none of them."""
    give_up = time.monotonic() + REAP_SECONDS
    reap_the_late()
    while _dying and time.monotonic() < give_up:
        time.sleep(REAP_PAUSE_SECONDS)
        reap_the_late()


def kill_every(is_one: Callable[[int], bool]) -> None:
    """SIGKILL each process of which `is_one` is true; it may raise OSError for one that has gone."""
    for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
        with contextlib.suppress(OSError):
            if not is_one(pid):
                continue
            pidfd = os.pidfd_open(pid)
            try:
                if is_one(pid):  # asked again: the pidfd holds what we looked at, not who came after it
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _asleep(pid: int) -> LeftBehind:
    """Return what /proc says of a process of ours that does not die; these files take no lock of its memory map."""
    state = wchan = "?"
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{pid}/stat", "rb") as stream:
            state = proc_stat.parse(stream.read()).state or "?"
        with open(f"/proc/{pid}/wchan", "rb") as stream:
            wchan = stream.read().decode() or "?"
    return LeftBehind(pid=pid, state=state, wchan=wchan)


def in_words(left_behind: LeftBehind | None) -> str:
    """Return which process of ours stays behind, empty when none does."""
    if left_behind is None:
        return ""
    return f"; process {left_behind.pid} of ours sleeps in {left_behind.wchan} (state {left_behind.state})"


def has_answered(child: Child) -> bool:
    """Return whether something of a child's answer is there to be read, or its end; waits for neither."""
    poller = select.poll()
    poller.register(child.answers, select.POLLIN)
    return bool(poller.poll(0))


def receive(
    descriptor: int,
    size: int,
    until: float,
    tick: Callable[[], None] | None = None,
    *,
    every: float = TICK_SECONDS,
) -> bytes:
    """Read so many bytes of a child's answer, by that time of the monotonic clock, with a `tick` every so many seconds.

    Raises:
        Overdue: they are not there in time.
        EOFError: they will never be.
    """
    data = bytearray()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while len(data) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise Overdue
        if tick is not None:
            tick()
        if not poller.poll(min(left, A_POLL_SECONDS if tick is None else every) * 1000):
            continue
        part = os.read(descriptor, min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def receive_framed(
    descriptor: int, most: int, until: float = math.inf, tick: Callable[[], None] | None = None
) -> bytes:
    """Read one message with its LENGTH ahead of it, of which `most` bytes are taken; else as `receive`.

    Raises:
        Overdue: it is not there in time.
        EOFError: whoever would send it is gone.
    """
    (length,) = LENGTH.unpack(receive(descriptor, LENGTH.size, until, tick))
    return receive(descriptor, min(length, most), until, tick)


def framed(data: bytes) -> bytes:
    """Return a message with its LENGTH ahead of it."""
    return LENGTH.pack(len(data)) + data


def send(descriptor: int, data: bytes) -> None:
    """Write all of it, however long whoever reads it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
