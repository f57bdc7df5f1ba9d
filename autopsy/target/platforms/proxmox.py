"""Proxmox VE's virtual machines, by its pidfiles and by its own rule of what is alive."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopsy.files.plain import NotPlain
from autopsy.target.command_line import last, options
from autopsy.target.platforms.owned import Folder, NotOwned, is_trusted, opened
from autopsy.target.platforms.platform import MOST_PIDFILE, Claim, Roots, pid_of

# PVE::QemuServer::Helpers::parse_cmdline: `kvm`, or `qemu-` and anything, with or without a folder before it.
PROGRAM = re.compile(r".*kvm|(?:.*/)?qemu-[^/]+")


def claims(roots: Roots) -> tuple[Claim, ...]:
    """Return what every pidfile claims, dead ones included; only root's word counts."""
    with opened(roots.run, roots.proxmox) as folder:
        if folder is None or not is_trusted(folder.owner):
            return ()
        vmids = (vmid for vmid in folder.named(".pid") if vmid.isdecimal())
        return tuple(claim for vmid in vmids if (claim := _claim(folder, vmid)) is not None)


def claim_of(vmid: str, roots: Roots) -> Claim | None:
    """Return what one VMID's pidfile claims, None when there is none."""
    return next((claim for claim in claims(roots) if claim.name == vmid), None)


def _claim(folder: Folder, vmid: str) -> Claim | None:
    try:
        pid = pid_of(folder.read(f"{vmid}.pid", MOST_PIDFILE))
    except (OSError, NotPlain, NotOwned):
        return None
    return None if pid is None else Claim("proxmox", vmid, pid, folder.path / f"{vmid}.pid")


def is_alive(claim: Claim, arguments: Sequence[str]) -> bool:
    """Return whether Proxmox VE itself takes the process for that VM: the program's name, then its -pidfile."""
    if not arguments or not PROGRAM.fullmatch(arguments[0]):
        return False
    return same_place(last(options(arguments), "pidfile"), claim.pidfile)


def same_place(told: str, pidfile: Path) -> bool:
    """Return whether two spellings mean one file; /var/run is /run on every systemd machine.

    By their words alone: the told one comes from the process, and looking it up could hang.
    """
    return bool(told) and _plain(told) == _plain(str(pidfile))


def _plain(path: str) -> str:
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def is_its_monitor(claim: Claim, path: str) -> bool:
    """Return whether a listening socket is the QMP monitor that Proxmox VE gives this VM."""
    return same_place(path, claim.pidfile.with_suffix(".qmp"))


TASKS = Path("/var/log/pve/tasks")
LISTS = ("active", "index")
MOST_LIST = 256 << 10  # of a list's end: some two thousand tasks
MOST_TOLD = 8

# PVE::Tools::upid_encode: node, pid, its start in jiffies, start of the task, type, id, user.
UPID = re.compile(
    r"UPID:([\w.-]{1,64}):([0-9A-F]{8}):([0-9A-F]{8,9}):([0-9A-F]{8}):([\w-]{1,40}):([\w.-]{0,40}):([^:\s]{1,80}):"
)
QUIT_SECONDS = 60  # from qmeventd's `quit` to its SIGKILL
QUITS = frozenset({"qmstop", "qmshutdown", "qmreboot"})


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what it is, when it began (seconds since 1970), and how it ended, empty while it runs."""

    upid: str
    kind: str
    began: int
    user: str
    ended: str

    @property
    def log(self) -> str:
        """Return where its own log lies below the folder of tasks: in one of sixteen, by its start's last digit."""
        return f"{self.upid.split(':')[4][-1]}/{self.upid}"


def recent(vmid: str, folder: Path = TASKS) -> tuple[Task, ...]:
    """Return the newest tasks of one VM, the newest first; reads two files of the local disk.

    Raises:
        OSError: there are no such lists, or none that can be read.
    """
    found: dict[str, Task] = {}
    for name in LISTS:
        for task in _of(vmid, _end_of(folder / name)):
            found.setdefault(task.upid, task)
    return tuple(sorted(found.values(), key=lambda task: -task.began)[:MOST_TOLD])


def _of(vmid: str, lines: str) -> Iterator[Task]:
    for line in lines.splitlines():
        head, _, rest = line.partition(" ")
        upid = UPID.fullmatch(head)
        if upid and upid[6] == vmid:
            # `active` has a 1 for "saved" before time and status, `index` only these two
            words = rest.split(maxsplit=2)
            yield Task(upid[0], upid[5], int(upid[4], 16), upid[7], words[-1] if len(words) > 1 else "")


def _end_of(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, MOST_LIST, max(0, size - MOST_LIST)).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def clock(vmid: str, folder: Path = TASKS, now: float | None = None) -> str:
    """Return in words that somebody told this VM to end so lately that qmeventd may SIGKILL it; else nothing."""
    now = time.time() if now is None else now
    try:
        tasks = recent(vmid, folder)
    except OSError:
        return ""
    for task in tasks:
        age = now - task.began
        if task.kind in QUITS and -1 <= age < 2 * QUIT_SECONDS:
            return (
                f"{task.kind} was begun {max(0, age):.0f} s ago by {task.user}: qmeventd may SIGKILL this VM"
                f" {QUIT_SECONDS} s after its quit, so this capture hurries"
            )
    return ""
