"""The control groups that the VM is in, from its own up to the top: a limit or a freeze above it counts too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from autopsy.bundle.sections import REST
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.reader import SectionRead, Unreadable
from autopsy.linux.mounts import Mount, mounts_of

UNIFIED: tuple[str, ...] = (
    "cgroup.freeze",
    "cgroup.events",
    "cgroup.type",
    "cpu.max",
    "cpu.stat",
    "cpu.pressure",
    "cpu.weight",
    "cpuset.cpus.effective",
    "io.max",
    "io.stat",
    "io.pressure",
    "io.latency",
    "io.weight",
    "memory.current",
    "memory.events",
    "memory.high",
    "memory.max",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
)
# The files of the older hierarchies, by controller.
OLDER = {
    "freezer": ("freezer.state", "freezer.self_freezing", "freezer.parent_freezing"),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.failcnt",
        "memory.oom_control",
        "memory.stat",
    ),
    "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.stat", "cpu.rt_runtime_us", "cpu.shares"),
    "cpuset": ("cpuset.cpus", "cpuset.effective_cpus"),
    "blkio": (
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.write_iops_device",
        "blkio.throttle.io_serviced",
        "blkio.throttle.io_service_bytes",
    ),
}
MOST_GROUPS = 64


def membership_reads(process: ProcDirectory) -> list[SectionRead]:
    """Return reads of /proc/PID/cgroup and of each thread's: libvirt gives vCPUs and iothreads groups of their own.

    They take cgroup_mutex, which a stuck cgroup holds.
    """
    files = ["cgroup", *(f"task/{tid}/cgroup" for tid in process.numbers("task"))]
    return [SectionRead(f"/proc/{process.pid}/{file}", partial(process.read, file), "cgroup_mutex") for file in files]


def reads(memberships: Iterable[bytes], mountinfo: bytes) -> Iterator[SectionRead]:
    """Yield the files of every such group; a file that a kernel lacks gives ENOENT.

    `mountinfo` is our own, because it is our own view of the hierarchies that we read.
    """
    mounts = [mount for mount in mounts_of(mountinfo).values() if mount.kind in {"cgroup", "cgroup2"}]
    seen: set[str] = set()
    for line in dict.fromkeys(line for text in memberships for line in text.decode("utf-8", "replace").splitlines()):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for mount in mounts:
            for folder, files in _levels(mount, controllers.split(","), path):
                if folder in seen:
                    continue
                seen.add(folder)
                if len(seen) <= MOST_GROUPS:
                    yield from (
                        SectionRead(f"{folder}/{file}", partial(read_file, f"{folder}/{file}")) for file in files
                    )
    if (left := len(seen) - MOST_GROUPS) > 0:
        yield SectionRead(f"cgroup{REST}", partial(_not_read, left))


def _not_read(left: int) -> bytes:
    raise Unreadable(f"{left} more groups were not looked at")


def _levels(mount: Mount, controllers: list[str], path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if mount.kind == "cgroup2":
        files = UNIFIED if controllers == [""] else ()
    else:
        mounted = set(mount.options.split(","))
        ours = [name for name in controllers if name in mounted]
        files = tuple(file for name in ours for file in OLDER.get(name, ()))
    if not files or "/.." in path:  # outside of our own view
        return
    inside = path.removeprefix(mount.root.rstrip("/")) if path.startswith(mount.root) else path
    parts = [part for part in inside.split("/") if part]
    for depth in range(len(parts), 0, -1):
        yield "/".join((mount.point.rstrip("/"), *parts[:depth])), files


def scopes(memberships: Iterable[bytes]) -> tuple[str, ...]:
    """Return the systemd units that /proc/PID/cgroup files name, such as `102.scope` of Proxmox.

    The first one on a path is systemd's own; what lies below, whoever it was given to may call after any other unit.
    """
    lines = (line for text in memberships for line in text.decode("utf-8", "replace").splitlines())
    paths = (line.split(":", 2)[-1].split("/") for line in lines)
    first = (next((part for part in path if part.endswith((".scope", ".service"))), "") for path in paths)
    return tuple(sorted(set(filter(None, first))))
