"""Outlives a debugger that was attached to a VM, and undoes what it left: stopped threads, stops still to come."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time

from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.linux.tasks.forking import kill_every

TRACED = re.compile(rb"^TracerPid:\s*[1-9]", re.MULTILINE)
STOPPED = re.compile(rb"^State:\s*[Tt]", re.MULTILINE)
PENDING = re.compile(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", re.MULTILINE)
STOP = 1 << signal.SIGSTOP - 1
TRIES_SECONDS = 10.0
PAUSE_SECONDS = 0.02
QUIET_LOOKS = 3  # in a row: a stop that is on its way shows only once it has come

# What the guardian's exit code says.
CLEAN, PUT_RIGHT, LEFT = 0, 1, 2


class NotHealed(Exception):
    """A thread of the VM did not come back, or nobody knows: the message says which command makes it run."""


@dataclass(frozen=True, slots=True)
class Guardian:
    """A process in a session of its own, which nothing that ends a capture ends."""

    pid: int
    pidfd: int
    target: int

    def word(self, seconds: float) -> bool:
        """Wait for it and return whether it had anything to put right.

        Raises:
            NotHealed: a thread is not as it was.
        """
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) if poller.poll(seconds * 1000) else LEFT
        finally:
            os.close(self.pidfd)
        if code not in (CLEAN, PUT_RIGHT):
            raise NotHealed(f"a thread of the VM may still be stopped by gdb: `kill -CONT {self.target}` lets it go on")
        return code == PUT_RIGHT


def post(pid: int, pidfd: int, debugger: int) -> Guardian:
    """Watch over a VM, held by its pidfd, from before `debugger` attaches to it until after that has ended.

    It is forked by hand, not by linux/tasks/forking.py, whose children die with us: where the whole capture is killed,
    gdb dies with it, and somebody must be left.
    """
    gone = os.pidfd_open(debugger)
    try:
        session = os.getsid(debugger)
        guardian = os.fork()
        if guardian == 0:
            _stand_guard(pid, pidfd, gone, (debugger, session))
        return Guardian(guardian, os.pidfd_open(guardian), pid)
    finally:
        os.close(gone)


def _stand_guard(pid: int, pidfd: int, debugger: int, its_own: tuple[int, int]) -> None:
    code = LEFT
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        first, last = sorted((pidfd, debugger))
        os.closerange(0, first)
        os.closerange(first + 1, last)
        os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
        poller = select.poll()
        poller.register(debugger, select.POLLIN)
        poller.poll()
        # What gdb started does not die with us as it did. While one of those lives, nobody else is given their numbers.
        with contextlib.suppress(OSError):
            kill_every(lambda pid: (os.getpgid(pid), os.getsid(pid)) == its_own)
        code = heal(pid, pidfd)
    finally:
        os._exit(code)


def heal(pid: int, pidfd: int, seconds: float = TRIES_SECONDS) -> int:
    """Have every thread of a process run that ran before: SIGCONT also takes back a stop that is pending."""
    give_up = time.monotonic() + seconds
    code, quiet = CLEAN, 0
    while quiet < QUIET_LOOKS:
        if time.monotonic() > give_up:
            return LEFT
        stopped, traced = _held(pid)
        quiet = 0 if stopped or traced else quiet + 1
        if stopped and not traced:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            code = PUT_RIGHT
        time.sleep(PAUSE_SECONDS)
    return code


def _held(pid: int) -> tuple[bool, bool]:
    """Return whether a thread is stopped, or is to stop when it next wakes, and whether one is traced."""
    stopped = traced = False
    with contextlib.suppress(FileNotFoundError):  # the process has ended: nothing is held
        for tid in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                status = read_kernel(f"/proc/{pid}/task/{tid}/status")
                pending = any(int(mask, 16) & STOP for mask in PENDING.findall(status))
                stopped |= pending or STOPPED.search(status) is not None
                traced |= TRACED.search(status) is not None
    return stopped, traced
