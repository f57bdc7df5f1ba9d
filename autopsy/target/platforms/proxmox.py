"""Proxmox VE's virtual machines, by its pidfiles and by its own rule of what is alive."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from autopsy.bundle.manifest import TargetRecord
from autopsy.files.plain import NotPlain
from autopsy.linux.batch import Unanswered
from autopsy.target.platforms.owned import Folder, NotOwned, is_trusted, opened
from autopsy.target.platforms.platform import MOST_PIDFILE, ManagerTask, Platform, Roots, VmClaim, pid_of
from autopsy.target.qemu_process import QemuProcess

# PVE::QemuServer::Helpers::parse_cmdline: `kvm`, or `qemu-` and anything, with or without a folder before it.
PROGRAM = re.compile(r".*kvm|(?:.*/)?qemu-[^/]+")


def claims(roots: Roots) -> tuple[VmClaim, ...]:
    """Return what every pidfile claims, dead ones included; only root's word counts."""
    with opened(roots.run, roots.proxmox) as folder:
        if folder is None or not is_trusted(folder.owner):
            return ()
        vmids = (vmid for vmid in folder.named(".pid") if vmid.isdecimal())
        return tuple(claim for vmid in vmids if (claim := _claim(folder, vmid)) is not None)


def _claim(folder: Folder, vmid: str) -> VmClaim | None:
    try:
        pid = pid_of(folder.read(f"{vmid}.pid", MOST_PIDFILE))
    except (OSError, NotPlain, NotOwned):
        return None
    return None if pid is None else VmClaim("proxmox", vmid, pid, folder.path / f"{vmid}.pid")


def is_alive(claim: VmClaim, process: QemuProcess) -> bool:
    """Return whether Proxmox VE itself takes the process for that VM: the program's name, then its -pidfile."""
    if isinstance(process.arguments, Unanswered) or not PROGRAM.fullmatch("".join(process.arguments[:1])):
        return False
    return same_place(process.option("pidfile"), claim.pidfile)


def same_place(place: str, pidfile: Path) -> bool:
    """Return whether two spellings mean one file; /var/run is /run on every systemd machine.

    By their words alone: the told one comes from the process, and looking it up could hang.
    """
    return bool(place) and _plain(place) == _plain(str(pidfile))


def _plain(path: str) -> str:
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def is_its_monitor(claim: VmClaim, path: str) -> bool:
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


def recent(vmid: str, folder: Path = TASKS) -> tuple[ManagerTask, ...]:
    """Return the newest tasks of one VM, the newest first; reads two files of the local disk.

    Raises:
        OSError: there are no such lists, or none that can be read.
    """
    tasks: dict[str, ManagerTask] = {}
    for name in LISTS:
        for task in _of(vmid, folder, _end_of(folder / name)):
            tasks.setdefault(task.log, task)
    return tuple(sorted(tasks.values(), key=lambda task: -task.began)[:MOST_TOLD])


def _of(vmid: str, folder: Path, lines: str) -> Iterator[ManagerTask]:
    for line in lines.splitlines():
        head, _, rest = line.partition(" ")
        upid = UPID.fullmatch(head)
        if upid and upid[6] == vmid:
            # `active` has a 1 for "saved" before time and status, `index` only these two
            words = rest.split(maxsplit=2)
            log = folder / upid[4][-1] / upid[0]  # in one of sixteen folders, by the last digit of its start
            yield ManagerTask(upid[5], int(upid[4], 16), upid[7], words[-1] if len(words) > 1 else "", str(log))


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


CLEANUP_SECONDS = 3.0  # for qmeventd, which runs `qm cleanup` once the process is gone
CLUSTER = ("/etc/pve/storage.cfg", "/etc/pve/ha/manager_status", "/etc/pve/ha/resources.cfg")
LOADS = ("/var/lib/rrdcached/db/pve-vm-9.0", "/var/lib/rrdcached/db/pve2-vm")  # since Proxmox VE 9; before that


def _is_vmid(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _configuration(name: str) -> tuple[str, ...]:
    return (f"/etc/pve/qemu-server/{name}.conf", *CLUSTER) if _is_vmid(name) else ()


def _load(name: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for folder in LOADS) if _is_vmid(name) else ()


def _locks(name: str) -> tuple[str, ...]:
    return (f"/var/lock/qemu-server/lock-{name}.conf",) if _is_vmid(name) else ()


def _tasks(name: str) -> tuple[ManagerTask, ...]:
    return recent(name) if _is_vmid(name) else ()


def _start(record: TargetRecord) -> tuple[str, ...]:
    return ("qm", "start", record.name)


def _keep_down(name: str) -> str:
    return f"ha-manager set vm:{name} --state stopped"


PROXMOX = Platform(
    manager="proxmox",
    form="pve",
    numbers_vms=True,
    claims=lambda _pids, roots: claims(roots),
    is_alive=is_alive,
    is_its_monitor=is_its_monitor,
    runs_as_root=True,
    configuration=_configuration,
    load=_load,
    locks=_locks,
    task_lists=str(TASKS),
    tasks=_tasks,
    start=_start,
    start_words="qm start",
    keep_down=_keep_down,
    hurry=clock,
    cleanup_seconds=CLEANUP_SECONDS,
)
