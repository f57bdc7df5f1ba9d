"""What the host keeps of the VM in files: its configuration without its secrets, and its log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from autopsy.capture.host.own_log import open_own
from autopsy.capture.reading.procfs import Process, read_file, tail_of
from autopsy.capture.reading.reader import Cut, Read
from autopsy.files.plain import open_plain
from autopsy.linux.files import open_below, read_below
from autopsy.redact.secrets import without_secrets
from autopsy.target.platforms import proxmox

MOST_CONFIG = 1 << 20
MOST_LOG = 64 << 10
DOMAINS = ("/run/libvirt/qemu", "/run/libvirt/qemu/run", "/etc/libvirt/qemu")
RRDS = ("/var/lib/rrdcached/db/pve-vm-9.0", "/var/lib/rrdcached/db/pve2-vm")  # since Proxmox VE 9; before that
MOST_RRD = 8 << 20
PROXMOX = ("/etc/pve/storage.cfg", "/etc/pve/ha/manager_status", "/etc/pve/ha/resources.cfg")


def hidden(config: bytes) -> bytes:
    """Return a configuration with the values of passwords and the like removed."""
    return without_secrets(config.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def configuration(name: str, manager: str, root: str = "") -> list[Read]:
    """Return reads of the VM's configuration; /etc/pve is a FUSE file system that hangs without quorum or disk.

    `root` is the root directory of the container that the manager lives in, empty for our own.
    """
    match manager:
        case "proxmox":
            paths = [f"/etc/pve/qemu-server/{name}.conf", *PROXMOX] if _is_vmid(name) else []
        case "libvirt":
            paths = [f"{folder}/{name}.xml" for folder in DOMAINS if _plain(name)]
        case _:
            paths = []
    return [
        Read(f"{root}{path}", partial(_configuration, path, root), "pmxcfs" if path.startswith("/etc/pve") else "")
        for path in paths
    ]


def log(process: Process, name: str, manager: str, root: str = "") -> list[Read]:
    """Return reads of where QEMU's words go, the likeliest first; a manager may have kept them for itself."""
    return [
        *managers_log(name, manager, root),
        *(
            Read(f"/proc/{process.pid}/fd/{number}", partial(_own_log, process, number))
            for number in _own_streams(process)
        ),
    ]


def managers_log(name: str, manager: str, root: str = "") -> list[Read]:
    """Return reads of the log that the VM's manager keeps, which outlives the process."""
    paths = [f"/var/log/libvirt/qemu/{name}.log"] if manager == "libvirt" and _plain(name) else []
    return [Read(f"{root}{path}", partial(_log, root, path)) for path in paths]


def tail(descriptor: int) -> bytes | Cut:
    """Return the end of an open log, without secrets."""
    return _clean(tail_of(descriptor, MOST_LOG))


def _log(root: str, path: str) -> bytes | Cut:
    """Return a log's tail; libvirt's begins with the whole command line, secrets included."""
    descriptor = open_below(root, path) if root else open_plain(path)
    try:
        return tail(descriptor)
    finally:
        os.close(descriptor)


def _own_log(process: Process, number: int) -> bytes | Cut:
    descriptor = open_own(process, number)
    try:
        return tail(descriptor)
    finally:
        os.close(descriptor)


def tasks(name: str, manager: str) -> list[Read]:
    """Return reads of the manager's newest tasks with this VM, each with its own log."""
    if manager != "proxmox" or not _is_vmid(name):
        return []
    try:
        recent = proxmox.recent(name)
    except OSError as error:
        return [Read(str(proxmox.TASKS), partial(_raise, error))]
    return [Read(str(proxmox.TASKS / task.log), partial(_task, task)) for task in recent]


def _task(task: proxmox.Task) -> bytes:
    began = datetime.fromtimestamp(task.began, UTC).isoformat()
    head = f"{task.kind} by {task.user}, begun {began}, {task.ended or 'still running'}\n"
    try:
        log = _log("", str(proxmox.TASKS / task.log))
    except FileNotFoundError:
        log = b""
    return head.encode() + (log.data if isinstance(log, Cut) else log)


def _raise(error: OSError) -> bytes:
    raise error


def rrd(name: str, manager: str) -> list[Read]:
    """Return reads of the round-robin database that holds the VM's load from before the incident."""
    paths = [f"{folder}/{name}" for folder in RRDS] if manager == "proxmox" and _is_vmid(name) else []
    return [Read(path, partial(read_file, path, MOST_RRD)) for path in paths]


def _is_vmid(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _configuration(path: str, root: str = "") -> bytes | Cut:
    return _clean(read_below(root, path, MOST_CONFIG) if root else read_file(path, MOST_CONFIG))


def _clean(found: bytes | Cut) -> bytes | Cut:
    if isinstance(found, Cut):
        return Cut(hidden(found.data), found.why)
    return hidden(found)


def _plain(name: str) -> bool:
    return bool(name) and "/" not in name and "\0" not in name and name not in {".", ".."}


def _own_streams(process: Process) -> Iterator[int]:
    """Yield stderr, then stdout, where they are files."""
    for number in (2, 1):
        try:
            link = process.link(f"fd/{number}")
        except OSError:
            continue
        if link.startswith(b"/") and not link.startswith(b"/dev/"):
            yield number
