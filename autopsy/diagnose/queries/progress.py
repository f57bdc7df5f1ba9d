"""Whether a disk's counters say of one request that it goes on."""

from __future__ import annotations

from typing import Literal, get_args

from autopsy.facts.cite import Known
from autopsy.facts.model.facts import BlockStats, CoroutineFact, DiskFact, Facts, Limits, Park
from autopsy.facts.model.yield_points import BY_DRIVER, SERVED

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
LIMITED: dict[str, set[Kind]] = {"total": {"reads", "writes"}, "read": {"reads"}, "write": {"writes"}}
# Some of a disk's requests wait at these while others never come there: for a server that only a part of the disk lies
# on (a backing file, a child of a quorum), or until a backup has copied what they are about to overwrite.
APART = (SERVED & BY_DRIVER) | {Park.COPY_BEFORE_WRITE}
# Two looks meet two passing requests at one place by chance in one of a hundred times, where no more than this many
# are in flight on the average.
SELDOM = 0.1


def speaks_for(facts: Facts, disk: DiskFact, coroutine: CoroutineFact) -> bool | None:
    """Tell whether a disk completed requests of this one's kind that go the same way; None where that is not known.

    A request that was seen to stand, with all that is on its stack, is excused by nothing less.
    """
    if not isinstance(disk.completed, Known) or disk.completed.value <= 0:
        return False
    otherwise = False if isinstance(coroutine.stuck, Known) and coroutine.stuck.value else None
    if coroutine.park in APART and _goes_elsewhere_too(disk, coroutine.park):
        return otherwise
    before, after = disk.stats, disk.stats_again
    if not isinstance(before, Known) or not isinstance(after, Known):
        return True
    moved = {kind for kind in get_args(Kind) if _of_kind(after.value, kind) > _of_kind(before.value, kind)}
    kind = _kind(coroutine)
    if kind is None and coroutine.park is not Park.THROTTLE:
        return True
    if alike := {kind} if kind is not None else _limited_together(facts, disk):
        return True if alike & moved else otherwise
    return True if {"reads", "writes"} <= moved else None


def is_seldom_busy(facts: Facts, disk: DiskFact) -> bool:
    """Tell whether hardly a request of a disk was in flight on the average, by what those that ended took together.

    What stood there at both looks was then no other request that just came by (Little's law).
    """
    before, after, seconds = disk.stats, disk.stats_again, facts.times.gap_seconds
    if not isinstance(before, Known) or not isinstance(after, Known) or seconds <= 0:
        return False
    return 0 < after.value.total_ns - before.value.total_ns < SELDOM * seconds * 1e9


def _goes_elsewhere_too(disk: DiskFact, park: Park) -> bool:
    leaves = [node.driver for node in disk.nodes if node.driver and not node.children]
    return any(driver not in park.drivers for driver in leaves)


def _kind(coroutine: CoroutineFact) -> Kind | None:
    """Say what a request does by its outermost function that tells."""
    for frame in reversed(coroutine.frames):
        for word, kind in KINDS:
            if word in frame.function:
                return kind
    return None


def _limited_together(facts: Facts, disk: DiskFact) -> set[Kind]:
    """Return the kinds of requests that wait for one and the same limit, none where that is not known."""
    groups = facts.throttle_groups.value if isinstance(facts.throttle_groups, Known) else ()
    name = disk.throttle_group.value if isinstance(disk.throttle_group, Known) else ""
    limits: list[Limits] = [
        group.limits.value for group in groups if group.name == name and isinstance(group.limits, Known)
    ]
    if isinstance(disk.limits, Known):
        limits.append(disk.limits.value)
    words = {word.split("-")[1] for limit in limits for word, _ in limit.values if word.count("-") == 1}
    return LIMITED[words.pop()] if len(words) == 1 else set()


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
