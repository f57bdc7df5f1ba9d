"""The FUSE file systems below the target's files, how many requests wait there, and which daemon answers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import MainLoop
from autopsy.bundle.sections import Section
from autopsy.bundle.syscalls import NAMES
from autopsy.capture.proc import layers
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.reader import ReadFailures, SectionFile, SectionRead, as_far_as_read, sections, take
from autopsy.capture.step import Scene
from autopsy.linux.fd_holders import holders
from autopsy.linux.mounts import Mount, mount_at, mounts_in_use

DEVICE = b"/dev/fuse"
CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)$", re.MULTILINE)
OF_A_CONNECTION = ("waiting", "max_background", "congestion_threshold")
SEARCH_SECONDS = 1.0
BY_NAME = frozenset({"connect", "openat", "newfstatat", "statx"})  # the calls whose path main-loop.json tells


def collect_fuse(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], stored: SectionFile, trouble: ReadFailures
) -> frozenset[int]:
    """Store what is known of each FUSE mount in use, and return the daemons that may answer for them.

    Sections `fuse/<minor>/{mount,fds,waiting,…,daemon}`; the minor number is the connection's name in
    /sys/fs/fuse/connections. `daemon` holds a line `PID` for each process that may be it.
    """
    below = layers.collect_layers(scene, descriptors, stored, trouble)
    if _names_a_file(process):
        scene.wait_for_other()  # only the frozen core tells which
    own = {mount.device: mount for mount in (*below, *_mounts(scene, descriptors)) if mount.is_fuse}
    mounts = list(own.values())
    if not mounts:
        return frozenset()
    search = SectionRead("daemons", _daemons, seconds=SEARCH_SECONDS + 1)
    answer = take([search], scene.deadline, trouble)["daemons"]
    daemons = _pairs(answer.data)
    suspects: set[int] = set()
    for mount in mounts:
        minor = mount.device.partition(":")[2]
        sure = [pid for pid, connection in daemons if connection == minor]
        named = sure or [pid for pid, connection in daemons if not connection and pid != process.pid]
        suspects.update(named)
        stored.append(
            [
                Section(f"fuse/{minor}/mount", mount.line.encode("utf-8", "surrogateescape")),
                Section(f"fuse/{minor}/fds", " ".join(map(str, mount.fds)).encode()),
                Section(f"fuse/{minor}/daemon", _told(named, sure=bool(sure)), error=answer.error),
            ]
        )
        for batch in sections(_connection(mount, minor), scene.deadline, trouble):
            stored.append(batch)
    return frozenset(suspects)


def _mounts(scene: Scene, descriptors: Mapping[str, Section]) -> list[Mount]:
    """Return the mounts of what is open, and of the file that the main thread is about to open."""
    mounts = list(mounts_in_use(descriptors))
    try:
        loop = msgspec.json.decode(scene.earlier(layout.GDB_THREADS, layout.MAIN_LOOP), type=MainLoop)
    except msgspec.DecodeError:  # no core, or no examination of it
        return mounts
    opening = mount_at(descriptors, loop.path) if loop.path else None
    return mounts if opening is None or any(mount.id == opening.id for mount in mounts) else [*mounts, opening]


def _names_a_file(process: ProcDirectory) -> bool:
    """Return whether the main thread sleeps in a call that leads to a file by its name, or may for all that is told."""
    number, _, _ = process.small(f"task/{process.pid}/syscall").partition(b" ")
    return not number or (number.isdigit() and NAMES.get(int(number)) in BY_NAME)


def _connection(mount: Mount, minor: str) -> list[SectionRead]:
    folder = f"/sys/fs/fuse/connections/{minor}"
    fate = f"connection of {mount.point}"
    return [
        SectionRead(f"fuse/{minor}/{file}", partial(read_file, f"{folder}/{file}"), fate) for file in OF_A_CONNECTION
    ]


def _told(pids: list[int], *, sure: bool) -> bytes:
    if not pids:
        return b"no process of this host holds /dev/fuse\n"
    doubt = b"" if sure or len(pids) == 1 else b"one of\n"
    return doubt + b"".join(b"%d\n" % pid for pid in pids)


def _daemons() -> bytes:
    """Return a line `PID CONNECTION` for each process that holds /dev/fuse; the connection only where it is told.

    The target is among them: it can have an export of its own, and wait for that.
    """
    held, _ = holders([DEVICE], seconds=SEARCH_SECONDS, but=0)
    pairs = [(pid, connection) for pid in held.get(DEVICE, ()) for connection in _connections(pid) or [b""]]
    return b"".join(b"%d %b\n" % pair for pair in pairs)


def _connections(pid: int) -> list[bytes]:
    """Return the connections that a daemon's fdinfo tells of (seen in Linux 6.18); older kernels tell of none."""
    connections = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{number}".encode()) == DEVICE:
                fdinfo = read_file(f"/proc/{pid}/fdinfo/{number}")
                connections += CONNECTION.findall(as_far_as_read(fdinfo))
    except OSError:
        pass  # it ended, or closed one of them meanwhile
    return connections


def _pairs(data: bytes) -> list[tuple[int, str]]:
    words = [line.decode("ascii", "replace").partition(" ") for line in data.splitlines()]
    return [(int(pid), connection) for pid, _, connection in words]
