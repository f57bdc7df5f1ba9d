"""Starts a process of our own and ends it for certain, by its pidfd."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopsy.errors import AutopsyError

READY_SECONDS = 20.0  # a QEMU under TCG on a loaded machine is up in 2
END_SECONDS = 10.0
TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Process:
    """One child in a session of its own; `log` is its stdout and stderr."""

    child: subprocess.Popen[bytes]
    pidfd: int
    log: Path

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self.child.pid

    def alive(self) -> bool:
        """Return whether the process is still there (a zombie is not)."""
        return self.child.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens when it has gone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def stop(self) -> None:
        """SIGSTOP it, then wait until the kernel says that every thread stands."""
        self.send(signal.SIGSTOP)
        self.wait_until("it is stopped", lambda: not self.alive() or states(self.pid) <= {"T", "Z"})

    def resume(self) -> None:
        """SIGCONT it."""
        self.send(signal.SIGCONT)

    def wait_until(self, what: str, happened: Callable[[], bool], *, seconds: float = READY_SECONDS) -> None:
        """Wait for something that this process brings about.

        Raises:
            AutopsyError: The process ended first, or the time is up; the end of its log is in the message.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if not self.alive():
                raise self._broken(f"ended with {self.child.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self._broken(f"{seconds:g} s have passed before {what}")
            time.sleep(0.01)

    def end(self) -> None:
        """Kill it, stopped or not, and wait until it has gone.

        Raises:
            AutopsyError: It cannot die: a thread of it waits in the kernel.
        """
        if self.alive():
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            try:
                self.child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                raise self._broken(f"is still there {END_SECONDS:g} s after SIGKILL") from None

    def _broken(self, cause: str) -> AutopsyError:
        tail = self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
        command = " ".join(map(str, self.child.args)) if isinstance(self.child.args, list) else str(self.child.args)
        return AutopsyError(
            f"process {self.pid}",
            f"{cause}; it said: {tail or '(nothing)'}",
            remedy=f"it was started as: {command}",
        )


def states(pid: int) -> set[str]:
    """Return the states of all threads of a process, as the letters of /proc/PID/task/TID/stat."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            found.add(task.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended meanwhile
    return found


@contextmanager
def process(command: Sequence[str | Path], *, log: Path) -> Iterator[Process]:
    """Run a command in a session of its own; it is killed and waited for on the way out."""
    with ExitStack() as stack:
        yield start(stack, command, log=log)


def start(stack: ExitStack, command: Sequence[str | Path], *, log: Path) -> Process:
    """Run a command in a session of its own; closing the stack kills it and waits for it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C on our terminal is for us; we end it in order
        )
    pidfd = os.pidfd_open(child.pid)
    stack.callback(os.close, pidfd)
    started = Process(child, pidfd, log)
    stack.callback(started.end)
    return started


def gone(pidfd: int, *, seconds: float) -> bool:
    """Wait for a process to end; return whether it has."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
