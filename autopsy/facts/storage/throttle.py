"""Throttle groups: their limits, and their timers and queues where the heap could be read."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.bundle import layout
from autopsy.bundle.heap import records as heap_records
from autopsy.facts import monitor
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, string
from autopsy.facts.model.facts import DiskFact, Limits, MonitorFact, ThrottleGroupFact
from autopsy.facts.untrusted import mapping, number, text

HEAP = layout.evidence(layout.GDB_THREADS, layout.HEAP)
NS = 1_000_000_000


def gather_throttle_groups(
    talk: MonitorFact,
    heap: Fact[heap_records.HeapSnapshot],
    line: CommandLine,
    disks: Fact[tuple[DiskFact, ...]],
) -> Fact[tuple[ThrottleGroupFact, ...]]:
    """Return every group that a disk, an object or the heap names."""
    members: dict[str, list[str]] = {}
    legacy: dict[str, Fact[Limits]] = {}
    for disk in disks.value if isinstance(disks, Known) else ():
        if isinstance(disk.throttle_group, Known) and (group := disk.throttle_group.value):
            members.setdefault(group, []).append(disk.name)
            if isinstance(disk.limits, Known) and disk.limits.value.values:
                legacy[group] = disk.limits
    objects = _objects(talk, line)
    in_heap = {group.name: group for group in heap.value.throttle_groups} if isinstance(heap, Known) else {}
    for group in (*objects, *in_heap):
        members.setdefault(group, [])
    if not members and isinstance(disks, Unknown) and isinstance(heap, Unknown):
        return disks
    groups = []
    for name, names_of_disks in members.items():
        limits = objects.get(name) or legacy.get(name) or _no_limits(talk)
        groups.append(_group(name, tuple(names_of_disks), limits, in_heap.get(name), heap))
    return Known(tuple(groups), Cite(layout.evidence(layout.THROTTLE_GROUPS, layout.QMP)))


def _objects(talk: MonitorFact, line: CommandLine) -> dict[str, Fact[Limits]]:
    """Return the groups that are objects of their own, with the limits QEMU tells, else those of the command line."""
    by_group: dict[str, Fact[Limits]] = {}
    for asked in talk.asked:
        path = text(asked.exchange.arguments.get("path"))
        if asked.exchange.question != "qom-get" or not path.startswith("/objects/"):
            continue
        if asked.exchange.arguments.get("property") == "limits" and asked.answer is not None and not asked.again:
            values = ((name, number(value)) for name, value in mapping(asked.answer).items())
            by_group[path.removeprefix("/objects/")] = Known(Limits(_real(values)), asked.cite)
    for options in line.objects:
        if string(options, "qom-type") != "throttle-group":
            continue
        raw = mapping(options.get("limits")) or {key[2:]: value for key, value in options.items() if key[:2] == "x-"}
        values = ((name, int(value) if str(value).isdecimal() else 0) for name, value in raw.items())
        by_group.setdefault(string(options, "id"), Known(Limits(_real(values)), line.cite))
    return {name: limits for name, limits in by_group.items() if name}


def _real(values: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple((name, value) for name, value in values if value and not name.endswith("-length"))


def _no_limits(talk: MonitorFact) -> Unknown:
    listed = monitor.answer(talk, "query-block")
    why = listed.why if isinstance(listed, Unknown) else "no answer tells this group's limits"
    return Unknown(layout.evidence(layout.THROTTLE_GROUPS, layout.QMP), why)


def _group(
    name: str,
    members: tuple[str, ...],
    limits: Fact[Limits],
    walked: heap_records.HeapThrottleGroup | None,
    heap: Fact[heap_records.HeapSnapshot],
) -> ThrottleGroupFact:
    cite = Cite(HEAP, 0, f"throttle group {name}")
    if walked is None:
        absent = heap if isinstance(heap, Unknown) else Unknown(HEAP, "the heap walk met no such group")
        cite = limits.cite if isinstance(limits, Known) else Cite(limits.evidence)
        return ThrottleGroupFact(
            name=name,
            members=members,
            limits=limits,
            armed=absent,
            timer_ns=absent,
            due_ns=absent,
            pending=absent,
            restarting=absent,
            lock_address=absent,
            cite=cite,
        )
    timers = [timer for member in walked.members for timer in member.timers if timer is not None]
    timeless = any(timer.expires_ns is not None and timer.due_in_ns is None for timer in timers)
    due = [timer.due_in_ns for timer in timers if timer.expires_ns is not None and timer.due_in_ns is not None]
    buckets = tuple((bucket.name, int(bucket.avg)) for bucket in walked.buckets if bucket.avg)
    return ThrottleGroupFact(
        name=name,
        members=members or tuple(member.owner for member in walked.members),
        limits=limits if isinstance(limits, Known) else Known(Limits(buckets), cite),
        armed=Known(any(walked.any_timer_armed), cite),
        timer_ns=Unknown(HEAP, "when the core was taken is not known")
        if timeless
        else Known(min(due) if due else None, cite),
        due_ns=Known(_wait_ns(walked), cite),
        pending=Known(sum(sum(member.pending_requests) for member in walked.members), cite),
        restarting=Known(any(member.restart_pending for member in walked.members), cite),
        lock_address=Known(walked.lock.address, cite),
        cite=cite,
    )


def _wait_ns(group: heap_records.HeapThrottleGroup) -> int:
    """Return the longest wait that the present limits and levels ask for (throttle_compute_wait's rule)."""
    longest = 0.0
    for bucket in group.buckets:
        if bucket.avg <= 0:
            continue
        if bucket.max <= 0:
            extra, rate = bucket.level - bucket.avg / 10, bucket.avg
        elif (over := bucket.level - bucket.max * max(1, bucket.burst_length)) > 0:
            extra, rate = over, bucket.avg
        else:
            extra, rate = bucket.burst_level - bucket.max / 10, bucket.max
        longest = max(longest, extra / rate)
    return int(longest * NS)
