"""Whether a disk's counters say of one request that it goes on."""

from __future__ import annotations

from typing import Literal

from autopsy.facts.cite import Known
from autopsy.facts.model import BlockStats, CoroutineFact, Disk, Facts, Limits, Park
from autopsy.facts.requests import DRIVERS

Kind = Literal["reads", "writes", "flushes", "unmaps"]

# Names of the block layer's functions, exported or static, that tell what a request does.
KINDS: tuple[tuple[str, Kind], ...] = (
    ("pwrite", "writes"),
    ("_write_entry", "writes"),
    ("pread", "reads"),
    ("_read_entry", "reads"),
    ("flush", "flushes"),
    ("pdiscard", "unmaps"),
)
# Some of a disk's requests wait at these while others never come there: for a server that only a part of the disk lies
# on (a backing file, a child of a quorum), or until a backup has copied what they are about to overwrite.
APART = frozenset(
    {
        *(Park.NBD_REPLY, Park.NBD_CONNECT, Park.NBD_SEND, Park.NBD_SLOT, Park.RBD, Park.ISCSI, Park.NFS, Park.CURL),
        *(Park.SSH, Park.GLUSTER, Park.NVME, Park.COPY_BEFORE_WRITE),
    }
)


def speaks_for(facts: Facts, disk: Disk, coroutine: CoroutineFact) -> bool:
    """Tell whether a disk completed requests of this one's kind that go the same way.

    A request that was seen to stand, with all that is on its stack, is excused by nothing less.
    """
    if not isinstance(disk.completed, Known) or disk.completed.value <= 0:
        return False
    if not (isinstance(coroutine.stuck, Known) and coroutine.stuck.value):
        return True
    if coroutine.park in APART and _goes_elsewhere_too(disk, coroutine.park):
        return False
    kind = _kind(facts, disk, coroutine)
    before, after = disk.stats, disk.stats_again
    if kind is None or not isinstance(before, Known) or not isinstance(after, Known):
        return True
    return _of_kind(after.value, kind) > _of_kind(before.value, kind)


def _goes_elsewhere_too(disk: Disk, park: Park) -> bool:
    leaves = [node.driver for node in disk.nodes if node.driver and not node.children]
    return any(driver not in DRIVERS[park] for driver in leaves)


def _kind(facts: Facts, disk: Disk, coroutine: CoroutineFact) -> Kind | None:
    """Say what a request does by its outermost function that tells; behind a limit also by what is limited."""
    for frame in reversed(coroutine.frames):
        for word, kind in KINDS:
            if word in frame.function:
                return kind
    return _limited(facts, disk) if coroutine.park is Park.THROTTLE else None


def _limited(facts: Facts, disk: Disk) -> Kind | None:
    """Say which requests alone the limits hold back, None where they hold both or are not known."""
    groups = facts.throttle_groups.value if isinstance(facts.throttle_groups, Known) else ()
    name = disk.throttle_group.value if isinstance(disk.throttle_group, Known) else ""
    limits: list[Limits] = [
        each.limits.value for each in groups if each.name == name and isinstance(each.limits, Known)
    ]
    if isinstance(disk.limits, Known):
        limits.append(disk.limits.value)
    words = {word.split("-")[1] for each in limits for word, _ in each.values if word.count("-") == 1}
    return "reads" if words == {"read"} else "writes" if words == {"write"} else None


def _of_kind(stats: BlockStats, kind: Kind) -> int:
    match kind:
        case "reads":
            return stats.reads
        case "writes":
            return stats.writes
        case "flushes":
            return stats.flushes
        case "unmaps":
            return stats.unmaps
