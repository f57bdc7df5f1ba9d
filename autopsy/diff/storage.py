"""Compares the disks, limits and jobs of two captures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from autopsy.diff.difference import DifferingReading, DiskChange, compared, known, same_or_told, words
from autopsy.facts.cite import Fact, Known
from autopsy.facts.model.facts import BlockStats, DiskFact, Facts, JobFact, Limits, ThrottleGroupFact

T = TypeVar("T")


def disks(a: Facts, b: Facts, *, same: bool) -> Iterator[DiskChange]:
    """Yield every disk of either side, those first that completed least."""
    before, after = ({disk.name: disk for disk in known(facts.disks, ())} for facts in (a, b))
    changes = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            there = ("there", "not there") if other is None else ("not there", "there")
            changes.append(DiskChange(name=name, told=(DifferingReading(what="disk", a=there[0], b=there[1]),)))
            continue
        changes.append(
            DiskChange(
                name=name,
                completed=_completed(one.stats, other.stats) if same else msgspec.UNSET,
                in_flight_a=_number(one.in_flight),
                in_flight_b=_number(other.in_flight),
                told=tuple(_disk(one, other)),
            )
        )
    yield from sorted(changes, key=lambda change: (change.completed or 0, change.name))


def _completed(a: Fact[BlockStats], b: Fact[BlockStats]) -> int | msgspec.UnsetType:
    if isinstance(a, Known) and isinstance(b, Known):
        return b.value.completed - a.value.completed
    return msgspec.UNSET


def _number(fact: Fact[int]) -> int | msgspec.UnsetType:
    return fact.value if isinstance(fact, Known) else msgspec.UNSET


def _disk(one: DiskFact, other: DiskFact) -> Iterator[DifferingReading]:
    yield from compared(
        (
            ("limits", words(one.limits, _limits), words(other.limits, _limits)),
            ("throttle group", words(one.throttle_group, str), words(other.throttle_group, str)),
            ("io-status", words(one.io_status, str), words(other.io_status, str)),
            ("model", words(one.model, str), words(other.model, str)),
            ("iothread", words(one.iothread, str), words(other.iothread, str)),
            ("nodes", _nodes(one), _nodes(other)),
        )
    )


def _limits(limits: Limits) -> str:
    return ", ".join(f"{name} {value}" for name, value in limits.values) or "none"


def _nodes(disk: DiskFact) -> str:
    return " > ".join(f"{node.driver}{f' ({node.aio})' if node.aio else ''}" for node in disk.nodes)


def throttle(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    """Yield what differs about each throttle group."""
    before, after = (_by_name(known(facts.throttle_groups, ())) for facts in (a, b))
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            yield DifferingReading(what=name, a=_there(one), b=_there(other))
            continue
        for what, first, second in (
            ("limits", words(one.limits, _limits), words(other.limits, _limits)),
            ("members", ", ".join(one.members), ", ".join(other.members)),
            ("waiting", words(one.pending, str), words(other.pending, str)),
            ("timer", words(one.timer_ns, _timer), words(other.timer_ns, _timer)),
        ):
            yield from same_or_told(f"{name}: {what}", first, second)


def _by_name(groups: tuple[ThrottleGroupFact, ...]) -> dict[str, ThrottleGroupFact]:
    return {group.name: group for group in groups}


def _timer(nanoseconds: int | None) -> str:
    return "not set" if nanoseconds is None else f"fires in {nanoseconds / 1e9:.1f} s"


def jobs(a: Facts, b: Facts) -> Iterator[DifferingReading]:
    """Yield what differs about each block job."""
    before, after = ({job.id: job for job in known(facts.jobs, ())} for facts in (a, b))
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        yield from same_or_told(name or "a job without a name", _job(one), _job(other))


def _job(job: JobFact | None) -> str:
    if job is None:
        return "not there"
    paused = ", paused" if job.paused else ""
    return f"{job.kind}, {job.status or 'status not known'}{paused}, {job.current} of {job.total}"


def _there(value: object) -> str:
    return "there" if value is not None else "not there"
