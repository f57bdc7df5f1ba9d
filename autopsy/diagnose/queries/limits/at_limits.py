"""What waits for QEMU's own limits: which disks share a queue, for how long, and a job's copies that harm nobody."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.requests import disk_names, disks_of, still, their_disks
from autopsy.diagnose.signature import claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Park, ThrottleGroupFact

PER_SECOND = frozenset({"iops-total", "iops-read", "iops-write"})


@once
def copies_held(facts: Facts) -> tuple[CoroutineFact, ...]:
    """Return a job's requests that a limit holds back, where no disk of the guest is held up by them."""
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    if not disks or not all(_works(disk) for disk in disks if disk.inserted):
        return ()
    return tuple(request for request in still(facts, Park.THROTTLE) if request.of_job)


def _works(disk: DiskFact) -> bool:
    """Tell whether a disk is known to complete its requests, or to hold none."""
    idle = isinstance(disk.in_flight, Known) and disk.in_flight.value == 0
    return idle or (isinstance(disk.completed, Known) and disk.completed.value > 0)


def seconds_for(group: ThrottleGroupFact, requests: int) -> float | None:
    """Return how long a group's limit takes to let so many requests go, None where it counts bytes alone."""
    if not isinstance(group.limits, Known):
        return None
    rates = [rate for name, rate in group.limits.value.values if name in PER_SECOND and rate > 0]
    return requests / min(rates) if rates else None


def counts_size(group: ThrottleGroupFact) -> bool:
    """Tell whether a large request counts as several: how long they take, their number alone does not tell then."""
    return isinstance(group.limits, Known) and any(name == "iops-size" for name, _ in group.limits.value.values)


def disks_in_queue(
    facts: Facts, requests: Iterable[CoroutineFact], groups: Iterable[ThrottleGroupFact] = ()
) -> tuple[subjects.Volume, ...]:
    """Return the disks that these requests belong to; where that is not known, those that share their group's queue.

    `groups` are those that can hold them, where that is known.
    """
    requests = tuple(requests)
    if disks := their_disks(facts, requests):
        return disks
    wanted = {group.name for group in groups}
    possible = {disk.name: disk for request in requests for disk in disks_of(facts, request)}
    in_group = {
        disk.name: disk.throttle_group.value for disk in possible.values() if isinstance(disk.throttle_group, Known)
    }
    if wanted:
        possible = {name: disk for name, disk in possible.items() if in_group.get(name) in wanted}
    shared = len({in_group[name] for name in possible if name in in_group}) == 1
    return tuple(map(subjects.disk, possible.values())) if shared else ()


def about_sharing(
    facts: Facts, requests: tuple[CoroutineFact, ...], groups: Iterable[ThrottleGroupFact]
) -> tuple[Claim, ...]:
    """Say that disks share a queue, where nothing tells of which of them the requests in it are."""
    disks = disks_in_queue(facts, requests, groups)
    if len(disks) < 2 or their_disks(facts, requests):
        return ()
    words = f"{disk_names(disks)} share one group and its queue: whose requests stand in it cannot be told."
    return (claim(words, *(request.cite for request in requests[:2])),)
