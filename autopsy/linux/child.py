"""A forked child for anything that can block in the kernel: it may be abandoned, never waited for without end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from autopsy.bundle import proc_stat
from autopsy.bundle.manifest import LeftBehind
from autopsy.linux.trouble import FailureKind, trouble_of

PR_SET_PDEATHSIG = 1
MOST_BYTES = 256 << 20  # of one child's answer: a bound on our memory, not on any evidence we know of
REAP_SECONDS = 0.5  # from SIGKILL to the child being gone; past it the child sleeps in the kernel

# Good or not, the kind of failure, then the length. The end of the pipe would not do: a grandchild that is stuck in the
# kernel holds it open.
HEADER = struct.Struct("<?BQ")

_libc = ctypes.CDLL(None, use_errno=True)


def in_words(left_behind: LeftBehind | None) -> str:
    """Return which process of ours stays behind, empty when none does."""
    if left_behind is None:
        return ""
    return f"; process {left_behind.pid} of ours sleeps in {left_behind.wchan} (state {left_behind.state})"


class ChildTimedOut(Exception):
    """The child did not answer in time. `left_behind` is set where even SIGKILL did not end it."""

    def __init__(self, seconds: float, left_behind: LeftBehind | None) -> None:
        super().__init__(f"no answer in {seconds:.1f} s{in_words(left_behind)}")
        self.left_behind = left_behind


class ChildFailed(Exception):
    """The child's work raised, or the child died. The message is the error's own words, for people."""

    def __init__(self, words: str, trouble: FailureKind = FailureKind.OTHER) -> None:
        super().__init__(words)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Child:
    """A running child: `answers` is the read end of its pipe, `pidfd` polls readable once it has ended."""

    pid: int
    pidfd: int
    answers: int


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent ends, so that nothing of ours outlives us."""
    parent = os.getppid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended between the fork and the request
        os._exit(1)


def spawn(work: Callable[[], bytes]) -> Child:
    """Fork a child in a session of its own that runs `work` and sends its bytes, or the error's words, back.

    Raises:
        ChildFailed: there is no room for another process, or no descriptor for it.

    Concurrency: call it only from a process with one thread.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more: no reason to stop
            stream.flush()
    try:
        answers, sending = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            os.close(answers)
            os.close(sending)
            raise
    except OSError as error:
        raise ChildFailed(f"no process could be started: {error.strerror}", trouble_of(error)) from error
    if pid == 0:
        _be_the_child(work, sending)
    os.close(sending)
    return Child(pid, os.pidfd_open(pid), answers)


def _be_the_child(work: Callable[[], bytes], sending: int) -> None:
    status = 1
    try:
        os.setsid()
        die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        try:
            _send(sending, good=True, data=work())
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, its words are all that the parent will ever see
            words = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
            _send(sending, good=False, data=words, trouble=trouble_of(error))
    finally:
        os._exit(status)


def _send(descriptor: int, *, good: bool, data: bytes, trouble: FailureKind = FailureKind.OTHER) -> None:
    view = memoryview(HEADER.pack(good, trouble, len(data)) + data)
    while view:
        view = view[os.write(descriptor, view) :]


def end(child: Child, *, answered: bool = False) -> LeftBehind | None:
    """SIGKILL the child with all that it started, reap it, and say so if it cannot die.

    Safe to call on a child that has ended already. One that `answered` has ended what it put in groups of their own.
    """
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        if not answered:  # a program in a group of its own may have started others
            kill_every(lambda pid: os.getsid(pid) == child.pid)
        if _poll(child.pidfd, REAP_SECONDS):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            return None
        return _asleep(child.pid)
    finally:
        os.close(child.pidfd)
        os.close(child.answers)


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


def _poll(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _asleep(pid: int) -> LeftBehind:
    """Return what /proc says of a process of ours that does not die; these files take no lock of its memory map."""
    state = wchan = "?"
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{pid}/stat", "rb") as stream:
            state = proc_stat.parse(stream.read()).state or "?"
        with open(f"/proc/{pid}/wchan", "rb") as stream:
            wchan = stream.read().decode() or "?"
    return LeftBehind(pid=pid, state=state, wchan=wchan)


def collect(child: Child, seconds: float, tick: Callable[[], None] | None = None) -> bytes:
    """Wait for the child's answer at most `seconds`, calling `tick` ten times a second; then end it.

    Raises:
        ChildTimedOut: no whole answer in time.
        ChildFailed: the work raised, or the child was ended from outside.
    """
    give_up = time.monotonic() + seconds
    answer = bytearray()
    wanted = HEADER.size
    poller = select.poll()
    poller.register(child.answers, select.POLLIN)
    try:
        while len(answer) < wanted:
            left = give_up - time.monotonic()
            if left <= 0:
                break
            if tick is not None:
                tick()
            if not poller.poll(min(left, 0.1) * 1000):
                continue
            part = os.read(child.answers, 1 << 20)
            if not part:
                raise ChildFailed("the child process ended without an answer")
            answer += part
            if len(answer) >= HEADER.size:
                wanted = HEADER.size + HEADER.unpack_from(answer)[2]
            if wanted > MOST_BYTES:
                raise ChildFailed(f"it would answer more than {MOST_BYTES >> 20} MiB")
    finally:
        left_behind = end(child, answered=len(answer) >= wanted)
    if len(answer) < wanted:
        raise ChildTimedOut(seconds, left_behind)
    data = bytes(answer[HEADER.size :])
    good, trouble, _ = HEADER.unpack_from(answer)
    if good:
        return data
    raise ChildFailed(data.decode("utf-8", "replace"), FailureKind(trouble))


def in_child(work: Callable[[], bytes], seconds: float) -> bytes:
    """Run `work` in a child process that is given up after `seconds`, and return its bytes.

    Raises:
        ChildTimedOut: it did not answer in time; it was killed, or could not be and is named.
        ChildFailed: it raised; the message is the error's own words.
    """
    return collect(spawn(work), seconds)
