"""A manager's word that a process is one of its virtual machines; to be believed only once it is verified."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Manager = Literal["proxmox", "libvirt", "process"]

PID_LINE = re.compile(rb"\s*([0-9]{1,10})\s*")
MOST_PIDFILE = 64


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
    def libvirt(self) -> tuple[Path, Path]:
        """Return the folders of libvirt's pidfiles and status XML: the system's, and a session's of no user's folder.

        The latter's XDG_RUNTIME_DIR is /run itself, as in a container such as KubeVirt's.
        """
        return (self.run / "libvirt" / "qemu", self.run / "libvirt" / "qemu" / "run")

    @property
    def sessions(self) -> dict[int, Path]:
        """Return each user's folder of pidfiles and status XML, whether there is one or not: below XDG_RUNTIME_DIR."""
        try:
            users = sorted(int(name) for name in os.listdir(self.run / "user") if name.isascii() and name.isdecimal())
        except OSError:
            return {}
        return {user: self.run / "user" / str(user) / "libvirt" / "qemu" / "run" for user in users}


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

    `inside` a container, `pidfile` is told from the container's root; `pid` is ours in any case. `owner` is the user
    whose word it is: root's and our own count for every process, another's for that user's processes alone.
    """

    manager: Manager
    name: str
    pid: int
    pidfile: Path
    inside: Inside | None = None
    owner: int = 0

    @property
    def explicit(self) -> str:
        """Return the form on the command line that means this VM and no other."""
        return f"{'pve' if self.manager == 'proxmox' else 'libvirt'}:{self.name}"


def pid_of(line: bytes) -> int | None:
    """Return the process id that a pidfile's bytes tell, None when they tell none."""
    found = PID_LINE.fullmatch(line)
    return int(found[1]) if found and int(found[1]) > 0 else None
