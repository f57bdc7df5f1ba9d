"""How much memory this host can spare for evidence, and whether a path lies in memory itself."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from autopsy.linux.mounts import mounts_of

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
MEMORY_SHARE = 2  # at most one part in so many of the memory that is left: the host needs it more than we do

# Used, limit: of the cgroups' second version, then of the first.
CGROUP_FILES = (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes"))


def lies_in_memory(path: Path) -> bool:
    """Return whether a path is on a file system that no disk stands behind; told without a look at the path itself.

    /run is on disk in some containers.
    """
    with open("/proc/self/mountinfo", "rb") as stream:
        mounts = mounts_of(stream.read()).values()
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    if not above:
        return False
    # Of several on one point the last one hides the others.
    return max(enumerate(above), key=lambda mount: (len(mount[1].point), mount[0]))[1].kind in IN_MEMORY


def spare_memory() -> int:
    """Return how many bytes of memory evidence may take: tmpfs counts against our own cgroup's limit, too."""
    left = [int(psutil.virtual_memory().available), *_cgroup_room()]
    return max(0, min(left)) // MEMORY_SHARE


def _cgroup_room() -> list[int]:
    """Return limit minus use of every cgroup above us that has a limit."""
    rooms = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/mountinfo", "rb") as stream:
            mounts = mounts_of(stream.read()).values()
        with open("/proc/self/cgroup", encoding="utf-8") as stream:
            rows = [line.rstrip("\n").split(":", 2) for line in stream]
        for _, controllers, path in rows:
            if controllers and "memory" not in controllers.split(","):
                continue
            for mount in mounts:
                of_memory = not controllers or mount.source == "memory" or mount.point.endswith("/memory")
                if mount.kind == ("cgroup" if controllers else "cgroup2") and of_memory:
                    here = Path(mount.point, path.lstrip("/"))
                    rooms += [room for group in (here, *here.parents) if (room := _room_of(group)) is not None]
    return rooms


def _room_of(group: Path) -> int | None:
    for used, limit in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            return int((group / limit).read_text()) - int((group / used).read_text())
    return None
