"""What the host keeps of the VM in files: its configuration without its secrets, and its log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from autopsy.bundle.manifest import TargetRecord
from autopsy.capture.host.own_log import open_own
from autopsy.capture.reading.procfs import ProcDirectory, read_file, tail_of
from autopsy.capture.reading.reader import SectionRead, Truncated, Unreadable, as_far_as_read
from autopsy.files.plain import open_plain
from autopsy.linux.files import read_regular
from autopsy.redact.secrets import without_secrets
from autopsy.target.platforms.catalogue import platform_of
from autopsy.target.platforms.owned import NotOwned, open_inside
from autopsy.target.platforms.platform import ManagerTask

MOST_CONFIG = 1 << 20
MOST_LOG = 64 << 10
MOST_RRD = 8 << 20


def hidden(config: bytes) -> bytes:
    """Return a configuration with the values of passwords and the like removed."""
    return without_secrets(config.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def known_name(record: TargetRecord) -> str:
    """Return by what name the host's own files tell of a VM, empty where it is a domain of another user's session.

    That one gives it what name it likes, also that of somebody else's VM.
    """
    return "" if record.domain is not None and record.domain.user is not None else record.name


def configuration(name: str, manager: str, root: str = "") -> list[SectionRead]:
    """Return reads of the VM's configuration; /etc/pve is a FUSE file system that hangs without quorum or disk.

    `root` is the root directory of the container that the manager lives in, empty for our own.
    """
    return [
        SectionRead(
            f"{root}{path}", partial(_configuration, path, root), "pmxcfs" if path.startswith("/etc/pve") else ""
        )
        for path in platform_of(manager).configuration(name)
    ]


def log(process: ProcDirectory, name: str, manager: str, root: str = "") -> list[SectionRead]:
    """Return reads of where QEMU's words go, the likeliest first; a manager may have kept them for itself."""
    return [
        *managers_log(name, manager, root),
        *(
            SectionRead(f"/proc/{process.pid}/fd/{number}", partial(_own_log, process, number))
            for number in _own_streams(process)
        ),
    ]


def managers_log(name: str, manager: str, root: str = "") -> list[SectionRead]:
    """Return reads of the log that the VM's manager keeps, which outlives the process."""
    return [SectionRead(f"{root}{path}", partial(_log, root, path)) for path in platform_of(manager).log(name)]


def tail(descriptor: int) -> bytes | Truncated:
    """Return the end of an open log, without secrets."""
    return _clean(tail_of(descriptor, MOST_LOG))


def _log(root: str, path: str) -> bytes | Truncated:
    """Return a log's tail; libvirt's begins with the whole command line, secrets included."""
    try:
        descriptor = open_inside(root, path) if root else open_plain(path)
    except NotOwned as error:
        raise Unreadable(str(error)) from error
    try:
        return tail(descriptor)
    finally:
        os.close(descriptor)


def _own_log(process: ProcDirectory, number: int) -> bytes | Truncated:
    descriptor = open_own(process, number)
    try:
        return tail(descriptor)
    finally:
        os.close(descriptor)


def tasks(name: str, manager: str) -> list[SectionRead]:
    """Return reads of the manager's newest tasks with this VM, each with its own log."""
    platform = platform_of(manager)
    try:
        recent = platform.tasks(name)
    except OSError as error:
        return [SectionRead(platform.task_lists, partial(_raise, error))]
    return [SectionRead(task.log, partial(_task, task)) for task in recent]


def _task(task: ManagerTask) -> bytes:
    began = datetime.fromtimestamp(task.began, UTC).isoformat()
    head = f"{task.kind} by {task.user}, begun {began}, {task.ended or 'still running'}\n"
    try:
        log = _log("", task.log)
    except FileNotFoundError:
        log = b""
    return head.encode() + as_far_as_read(log)


def _raise(error: OSError) -> bytes:
    raise error


def rrd(name: str, manager: str) -> list[SectionRead]:
    """Return reads of the round-robin database that holds the VM's load from before the incident."""
    return [SectionRead(path, partial(read_file, path, MOST_RRD)) for path in platform_of(manager).load(name)]


def _configuration(path: str, root: str = "") -> bytes | Truncated:
    if not root:
        return _clean(read_file(path, MOST_CONFIG))
    try:
        return _clean(read_regular(open_inside(root, path), path, MOST_CONFIG))
    except NotOwned as error:
        raise Unreadable(str(error)) from error


def _clean(data: bytes | Truncated) -> bytes | Truncated:
    if isinstance(data, Truncated):
        return Truncated(hidden(data.data), data.why)
    return hidden(data)


def _own_streams(process: ProcDirectory) -> Iterator[int]:
    """Yield stderr, then stdout, where they are files."""
    for number in (2, 1):
        try:
            link = process.link(f"fd/{number}")
        except OSError:
            continue
        if link.startswith(b"/") and not link.startswith(b"/dev/"):
            yield number
