"""Starts a process of our own and ends it for certain, by its pidfd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autopsy.bundle import proc_stat
from autopsy.dataclass import dataclass
from autopsy.drill.site import Site, undisturbed
from autopsy.errors import AutopsyError
from autopsy.linux import environment

READY_SECONDS = 20.0  # a QEMU under TCG on a loaded machine is up in 2
END_SECONDS = 10.0
TOOL_SECONDS = 30.0
TAIL_BYTES = 2000

PACKAGES = {
    "qemu-nbd": "apt install qemu-utils",
    "qemu-storage-daemon": "apt install qemu-system-common (Debian 12), qemu-utils (later)",
    "fsfreeze": "apt install util-linux",
    "mkfs.ext4": "apt install e2fsprogs",
    "mkfs.xfs": "apt install xfsprogs",
}


@dataclass(frozen=True, slots=True)
class DrillProcess:
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
        if not self.alive():
            return
        self.send(signal.SIGKILL)  # it ends a stopped process as well
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
    letters = set()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            letters.add(proc_stat.parse(task.read_bytes()).state)
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended meanwhile
    return letters


def start(site: Site, command: Sequence[str | Path], *, log: str) -> DrillProcess:
    """Run a command in a session of its own; the site's end kills it and waits for it.

    Unless the site is kept, the kernel kills it too should we be killed ourselves (setpriv becomes the command).
    """
    words = [str(word) for word in command]
    path = site.folder / log
    with path.open("ab") as output, undisturbed():
        child = subprocess.Popen(
            words if site.keep else [tool("setpriv"), "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment.ours(PATH=environment.path(), **_for_qemu()),
            start_new_session=True,  # a Ctrl-C on our terminal is for us; we end it in order
        )
        site.undo.callback(child.wait, END_SECONDS)
        pidfd = os.pidfd_open(child.pid)
        started = DrillProcess(child, pidfd, path)
        site.undo.callback(os.close, pidfd)
        site.undo.callback(started.end)
        site.by_hand.append(("kill", "-KILL", str(child.pid)))
    return started


def _for_qemu() -> dict[str, str]:
    """Return what tells a QEMU of the operator's own where its modules are."""
    return {name: value for name, value in os.environ.items() if name.startswith("QEMU_")}


def tool(name: str) -> str:
    """Return the path of a program, /sbin included.

    Raises:
        AutopsyError: It is not installed.
    """
    path = shutil.which(name, path=environment.path())
    if path is None:
        raise AutopsyError(name, "not found on this host", remedy=PACKAGES.get(name, f"install {name}"))
    return path


def run(*command: str | Path) -> str:
    """Run a small tool to its end, out of a Ctrl-C's reach.

    Raises:
        AutopsyError: It failed; its own words are the cause.
    """
    words = [tool(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
        env=environment.ours(PATH=environment.path()),
        start_new_session=True,
    )
    if done.returncode:
        raise AutopsyError(" ".join(words), done.stderr.strip() or f"exit {done.returncode}", remedy="see its manual")
    return done.stdout
