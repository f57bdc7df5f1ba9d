"""A manager's word that a process is one of its virtual machines; to be believed only once it is verified."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autopsy.capture.files import NotPlain, read_plain

Manager = Literal["proxmox", "libvirt", "process"]

PID_LINE = re.compile(rb"\s*([0-9]{1,10})\s*")
MOST_PIDFILE = 64
MOST_VMS = 4096  # files looked at in one folder: a bound on our time


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the managers keep their files, and where the journal listens."""

    run: Path = Path("/run")
    log: Path = Path("/dev/log")

    @property
    def proxmox(self) -> Path:
        """Return the folder of Proxmox VE's pidfiles and sockets."""
        return self.run / "qemu-server"

    @property
    def libvirt(self) -> tuple[Path, ...]:
        """Return the folders of libvirt's pidfiles and status XML: the system's, then each session's.

        A session's is below XDG_RUNTIME_DIR, which is the user's, or /run itself in a container such as KubeVirt's.
        """
        sessions = sorted(self.run.glob("user/*/libvirt/qemu/run"))
        return (self.run / "libvirt" / "qemu", self.run / "libvirt" / "qemu" / "run", *sessions)


ROOTS = Roots()


@dataclass(frozen=True, slots=True)
class Status:
    """What a domain's status XML says of it. Absent words are empty."""

    name: str
    uuid: str
    number: str
    pid: int | None
    monitor: str


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a manager lives that runs in a container: its root directory as seen from here, and what it says there."""

    root: str
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One manager says: this process is my VM. `name` is the manager's own name for it (a VMID, a domain's name).

    `inside` a container, `pidfile` is told from the container's root; `pid` is ours in any case.
    """

    manager: Manager
    name: str
    pid: int
    pidfile: Path
    inside: Inside | None = None

    @property
    def explicit(self) -> str:
        """Return the form on the command line that means this VM and no other."""
        return f"{'pve' if self.manager == 'proxmox' else 'libvirt'}:{self.name}"


def pid_in(pidfile: Path) -> int | None:
    """Return the process id in a pidfile, None when there is no sound one."""
    try:
        return pid_of(read_plain(pidfile, MOST_PIDFILE))
    except (OSError, NotPlain):
        return None


def pid_of(line: bytes) -> int | None:
    """Return the process id that a pidfile's bytes tell, None when they tell none."""
    found = PID_LINE.fullmatch(line)
    return int(found[1]) if found and int(found[1]) > 0 else None


def listed(folder: Path, ending: str) -> tuple[str, ...]:
    """Return the names of a folder's files without their ending, none where the folder is missing or closed to us."""
    try:
        found = sorted(entry.name.removesuffix(ending) for entry in folder.iterdir() if entry.name.endswith(ending))
    except OSError:
        return ()
    return tuple(found[:MOST_VMS])
