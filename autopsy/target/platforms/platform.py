"""What a platform tells of its virtual machines, by the word of the manager that owns them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from autopsy.bundle.manifest import Domain, Manager, TargetRecord
from autopsy.dataclass import dataclass
from autopsy.target.qemu_process import QemuProcess

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
class VmClaim:
    """One manager says: this process is my VM; to be believed only once it is verified.

    `name` is the manager's own name for it (a VMID, a domain's name). `inside` a container, `pidfile` is told from the
    container's root; `pid` is ours in any case. `owner` is the user whose word it is: root's and our own count for
    every process, another's for that user's processes alone.
    """

    manager: Manager
    name: str
    pid: int
    pidfile: Path
    inside: Inside | None = None
    owner: int = 0


def pid_of(line: bytes) -> int | None:
    """Return the process id that a pidfile's bytes tell, None when they tell none."""
    match = PID_LINE.fullmatch(line)
    return int(match[1]) if match and int(match[1]) > 0 else None


@dataclass(frozen=True, slots=True)
class ManagerTask:
    """What a manager was told to do with a VM: when that began (seconds since 1970), and how it ended, empty before.

    `log` is the path of its own log.
    """

    kind: str
    began: int
    user: str
    ended: str
    log: str


def is_same_name(claim: VmClaim, word: str) -> bool:
    """Return whether a VM is meant by its manager's name for it."""
    return claim.name == word


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What is to be known of one platform; what has a default here, a platform may lack.

    `manager` is the name that bundles store, `form` the one before the colon of `pve:102`. `claims` is given the
    processes that may be QEMUs. `is_alive` is told a claim and what its process tells of itself, `is_its_monitor` a
    claim and the path of a listening socket: without them, no claim is believed. Functions of a name are given the
    VM's, which may be anything: no path is made of one that is no plain name.
    """

    manager: Manager
    form: str = ""
    numbers_vms: bool = False  # its own name for a VM is a number (a VMID)
    claims: Callable[[Sequence[int], Roots], tuple[VmClaim, ...]] = lambda _pids, _roots: ()
    answers_to: Callable[[VmClaim, str], bool] = is_same_name
    is_alive: Callable[[VmClaim, QemuProcess], bool] = lambda _claim, _process: False
    is_its_monitor: Callable[[VmClaim, str], bool] = lambda _claim, _path: False
    domain_of: Callable[[VmClaim, Roots], Domain | None] = lambda _claim, _roots: None
    runs_as_root: bool = (
        False  # anybody may come by the number that a pidfile still tells, and say what its VM was told
    )

    # Paths; `tasks` raises OSError where `task_lists` cannot be read.
    configuration: Callable[[str], tuple[str, ...]] = lambda _name: ()
    log: Callable[[str], tuple[str, ...]] = lambda _name: ()
    load: Callable[[str], tuple[str, ...]] = lambda _name: ()
    locks: Callable[[str], tuple[str, ...]] = lambda _name: ()
    task_lists: str = ""
    tasks: Callable[[str], tuple[ManagerTask, ...]] = lambda _name: ()

    # Commands, empty where there is none, and how they are called in a sentence. `why_no_start` tells why none starts
    # the VM. `daemon` is whom the command that ends a VM asks.
    end: Callable[[TargetRecord], tuple[str, ...]] = lambda _record: ()
    end_words: str = ""
    daemon: str = ""
    start: Callable[[TargetRecord], tuple[str, ...]] = lambda _record: ()
    start_words: str = ""
    why_no_start: Callable[[TargetRecord], str] = lambda _record: ""
    keep_down: Callable[[str], str] = lambda _name: ""

    # `hurry` says that the manager is about to kill the VM; `cleanup_seconds` is what it is given to clean up after.
    hurry: Callable[[str], str] = lambda _name: ""
    cleanup_seconds: float = 0.0
