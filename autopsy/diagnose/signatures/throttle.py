"""Requests that QEMU's own limits hold: behind their timer, a stale or lost one, or a lock that waits for itself."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.limits.at_limits import (
    about_sharing,
    copies_held,
    counts_size,
    disks_in_queue,
    seconds_for,
)
from autopsy.diagnose.queries.limits.throttle_locks import ThrottleLock, self_owned, throttle_lock
from autopsy.diagnose.queries.requests import (
    Standing,
    confidence,
    counted,
    disks_of,
    job_of,
    lets_go,
    monitor_is_dead,
    of_disks,
    of_owners,
    stand,
    standing,
)
from autopsy.diagnose.queries.threads import by_tid, functions
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, Origin, Park, ThreadFact, ThrottleGroupFact
from autopsy.facts.subjects import Subject

SECOND = 1_000_000_000
PATIENCE = 30.0  # seconds; what a limit lets pass within them is slow, and not stuck
SECTOR = 512  # no guest asks for less
NOT_PARKED = "no request is parked in a throttle group"


@once
def _groups(facts: Facts) -> tuple[ThrottleGroupFact, ...]:
    """Return the groups that the parked requests can be in."""
    parked = _parked(facts)
    if isinstance(facts.throttle_groups, Unknown) or not isinstance(parked, Standing):
        return ()
    names = {name for request in parked.requests for disk in disks_of(facts, request) for name in disk.on_its_way}
    groups = facts.throttle_groups.value
    possible = tuple(group for group in groups if group.name in names) or (groups if len(groups) == 1 else ())
    # Whose limit would have let them go is not the one that they wait for, as long as another one explains it.
    low = tuple(group for group in possible if not _why_overdue(facts, (group,)))
    return low or possible


def _stand(facts: Facts, parked: Standing) -> tuple[Subject, ...]:
    """Return what the graph of waits knows of them: their groups too, whether or not anything is known of those."""
    groups = {name for request in parked.requests for disk in disks_of(facts, request) for name in disk.on_its_way}
    return stand((Park.THROTTLE,), parked.requests, map(subjects.ThrottleGroup, sorted(groups)))


def _limits(group: ThrottleGroupFact) -> str:
    if isinstance(group.limits, Unknown):
        return "limits unknown"
    return ", ".join(f"{name} {value}" for name, value in group.limits.value.values) or "no limit is set now"


def _seconds(nanoseconds: int) -> str:
    seconds = nanoseconds / SECOND
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:.1f} h" if seconds > 7200 else f"{seconds / 60:.0f} min"


@once
def _parked(facts: Facts) -> Standing | RuledOut | CannotTell:
    parked = standing(facts, (Park.THROTTLE,))
    if isinstance(parked, Unknown):
        return CannotTell(f"the parked coroutines: {missing(parked)}")
    if parked.requests:
        return parked
    if parked.moving:
        return RuledOut(
            (
                f"requests are throttled, but they go on: {count(len(parked.moving), 'request')} of those parked there "
                "moved on"
            ),
            tuple(request.cite for request in parked.moving[:4]),
        )
    return RuledOut(NOT_PARKED, (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ())


def _why_overdue(facts: Facts, groups: tuple[ThrottleGroupFact, ...]) -> str:
    """Say why the present limits cannot explain the wait, empty where they can."""
    for group in groups:
        if isinstance(group.timer_ns, Known) and isinstance(group.due_ns, Known):
            timer, due = group.timer_ns.value, group.due_ns.value
            if timer is not None and timer > max(SECOND, due * 2 + SECOND):
                return (
                    f"its timer fires in {_seconds(timer)}, but under the limits set now it would in "
                    f"{_seconds(max(0, due))}"
                )
            return ""
        gap = facts.times.gap_seconds
        if gap and isinstance(group.limits, Known) and group.limits.value.values:
            rates = dict(group.limits.value.values)
            wide = [
                lets_go(rates[name], "bytes", gap) for name in rates if name.startswith("bps-") and "max" not in name
            ]
            wide += [
                lets_go(rates[name], "requests", gap)
                for name in rates
                if name.startswith("iops-") and name[-3:] not in {"max", "ize"}
            ]
            if wide and all(wide):
                return (
                    f"the limits set now ({_limits(group)}) would have let a request go within the {gap:.1f} s of "
                    "watching"
                )
    return ""


def _may_flow(facts: Facts, parked: Standing, groups: tuple[ThrottleGroupFact, ...]) -> bool:
    """Tell whether requests may have passed the limit while these stood in its queue: nobody counted, it lets some go.

    Nobody takes a core of a VM that goes on; of an export nobody counts; a thread that waits for itself lets none go.
    """
    disks = [disk for request in parked.requests for disk in disks_of(facts, request)]
    counted = not disks or any(disk.is_export or isinstance(disk.completed, Known) for disk in disks)
    dead = monitor_is_dead(facts) or bool(self_owned(facts))
    if counted or dead or facts.origin is not Origin.CAPTURE:
        return False
    return not any(_holds_all(group, facts.times.gap_seconds or 0.0) for group in groups)


def _holds_all(group: ThrottleGroupFact, gap: float) -> bool:
    """Tell whether a group let no request go for so long, however small."""
    if isinstance(group.timer_ns, Known) and group.timer_ns.value is not None:
        return group.timer_ns.value > gap * SECOND
    rates = group.limits.value.values if isinstance(group.limits, Known) else ()
    least = {"bps": SECTOR, "iops": 1}
    return any(
        rate * gap < least[name.partition("-")[0]]
        for name, rate in rates
        if name.count("-") == 1 and name[-4:] != "size"
    )


def _chain(facts: Facts, parked: Standing, groups: tuple[ThrottleGroupFact, ...]) -> tuple[Claim, ...]:
    whose = of_owners(facts, parked.requests, disks_in_queue(facts, parked.requests, groups))
    claims = [
        claim(
            f"{parked.counted()} {whose} "
            f"{'is' if len(parked.requests) == 1 else 'are'} parked in "
            "throttle_group_co_io_limits_intercept: below the device, above every block driver.",
            *parked.cites,
        )
    ]
    claims += about_sharing(facts, parked.requests, groups)
    if parked.proven:
        claims.append(claim("They stood at the same place, with the same registers, at both snapshots.", *parked.cites))
    for group in groups:
        cite = group.limits.cite if isinstance(group.limits, Known) else group.cite
        claims.append(claim(f"Throttle group {group.name}: {_limits(group)}.", cite))
        if isinstance(group.timer_ns, Known):
            timer = group.timer_ns.value
            claims.append(
                claim(
                    f"Throttle group {group.name} has no timer pending."
                    if timer is None
                    else f"The timer of throttle group {group.name} was due {_seconds(timer)} after the freeze."
                    if timer >= 0
                    else f"The timer of throttle group {group.name} was overdue by {_seconds(-timer)} at the freeze.",
                    group.timer_ns.cite,
                )
            )
    return tuple(claims)


def _timer_wait(facts: Facts) -> Judgement:
    parked = _parked(facts)
    if not isinstance(parked, Standing):
        return parked
    groups = _groups(facts)
    if why := _why_overdue(facts, groups):
        return RuledOut(f"the limits do not explain it: {why}", parked.cites)
    if any(isinstance(group.timer_ns, Known) and _lost(group) for group in groups):
        return RuledOut("no timer is pending that could end the wait", parked.cites)
    if _may_flow(facts, parked, groups):
        return CannotTell("whether other requests passed the limit meanwhile (query-blockstats, twice)")
    disks = disks_in_queue(facts, parked.requests, groups)
    jobs = job_of(facts, parked.requests)
    group = groups[0] if groups else None
    limits = f" (group {group.name}: {_limits(group)})" if group else ""
    # Of an export nobody counts what passes its limit meanwhile.
    slow = _is_export(facts, parked) and not any(_holds_all(throttle_group, PATIENCE) for throttle_group in groups)
    copies = copies_held(facts)
    return Match(
        headline=f"{parked.counted()} {of_owners(facts, parked.requests, disks)} "
        f"{'waits' if len(parked.requests) == 1 else 'wait'} for QEMU's own I/O limit{limits}"
        f"{_how_long(group, len(parked.requests))}",
        objects=(*disks, *jobs, *(subjects.ThrottleGroup(throttle_group.name) for throttle_group in groups)),
        confidence=confidence(proven=parked.proven and not slow, otherwise="likely" if group else "possible"),
        claims=_chain(facts, parked, groups),
        stands=_stand(facts, parked),
        by_design=True,
        harmless=bool(copies) and len(copies) == len(parked.requests),
        weight=len(parked.requests),
    )


def _is_export(facts: Facts, parked: Standing) -> bool:
    return any(disk.is_export for request in parked.requests for disk in disks_of(facts, request))


def _how_long(group: ThrottleGroupFact | None, requests: int) -> str:
    seconds = seconds_for(group, requests) if group else None
    if group is None or seconds is None or seconds <= 1:
        return ""
    about = "at least" if counts_size(group) else "about"
    return f": it takes {about} {_seconds(int(seconds * SECOND))} for these"


def _stale(facts: Facts) -> Judgement:
    parked = _parked(facts)
    if not isinstance(parked, Standing):
        return parked
    groups = _groups(facts)
    why = _why_overdue(facts, groups)
    seen = any(isinstance(group.timer_ns, Known) for group in groups)
    if not why:
        if not seen and not groups:
            return CannotTell("the group's limits and its timer (heap.json, or qom-get of the limits)")
        words = (
            "the timer fits the limits that are set"
            if seen
            else "the limits that are set are low enough to explain the wait"
        )
        return RuledOut(words, tuple(group.cite for group in groups))
    if any(_lost(group) for group in groups):
        return RuledOut("there is no timer at all", tuple(group.cite for group in groups))
    disks = disks_in_queue(facts, parked.requests, groups)
    return Match(
        headline=f"{parked.counted()} {of_disks(disks)} "
        f"{'waits' if len(parked.requests) == 1 else 'wait'} for a throttle timer that is older than the limits: {why}",
        objects=(*disks, *(subjects.ThrottleGroup(group.name) for group in groups)),
        confidence="proven" if seen else "likely",
        claims=(
            *_chain(facts, parked, groups),
            claim(f"The limits do not explain the wait: {why}.", *(group.cite for group in groups)),
        ),
        stands=_stand(facts, parked),
        weight=len(parked.requests),
    )


def _lost(group: ThrottleGroupFact) -> bool:
    if not isinstance(group.timer_ns, Known) or not isinstance(group.pending, Known):
        return False
    restarting = isinstance(group.restarting, Known) and group.restarting.value
    timer = group.timer_ns.value
    return group.pending.value > 0 and not restarting and (timer is None or timer < -SECOND)


def _lost_timer(facts: Facts) -> Judgement:
    parked = _parked(facts)
    if not isinstance(parked, Standing):
        return parked
    groups = _groups(facts)
    if not any(isinstance(group.timer_ns, Known) for group in groups):
        return CannotTell("the group's timer: heap.json (QEMU's DWARF: `autopsy examine BUNDLE --debug-file F`)")
    lost = [group for group in groups if _lost(group)]
    if not lost:
        return RuledOut("the group's timer is pending", tuple(group.cite for group in groups))
    disks = disks_in_queue(facts, parked.requests, groups)
    return Match(
        headline=(f"{parked.counted()} {of_disks(disks)} wait for a throttle timer that nobody will fire"),
        objects=(*disks, *(subjects.ThrottleGroup(group.name) for group in lost)),
        confidence=confidence(proven=parked.proven),
        claims=_chain(facts, parked, groups),
        stands=_stand(facts, parked),
        weight=len(parked.requests),
    )


def _self_deadlock(facts: Facts) -> Judgement:
    if isinstance(facts.locks, Unknown):
        return CannotTell(f"who holds which mutex: {missing(facts.locks)}")
    selves = self_owned(facts)
    if not selves:
        return RuledOut("no thread waits for a mutex that it holds itself", (facts.locks.cite,))
    parked = standing(facts, (Park.THROTTLE_LOCK,))
    if (lock := throttle_lock(facts)) is not None:
        return _deadlock(facts, lock, by_tid(facts).get(lock.mutex.owner), parked)
    owners = [by_tid(facts)[mutex.owner] for mutex in selves if mutex.owner in by_tid(facts)]
    if isinstance(parked, Unknown) and not any(map(functions, owners)):
        return CannotTell("the frames of the thread that waits for itself (threads.json)")
    return RuledOut("the mutex that its owner waits for is no throttle group's", tuple(mutex.cite for mutex in selves))


def _deadlock(facts: Facts, lock: ThrottleLock, thread: ThreadFact | None, parked: Standing | Unknown) -> Match:
    mutex, group = lock.mutex, lock.group
    owner = subjects.thread(thread) if thread else subjects.Thread(mutex.owner)
    who = naming.name(owner)
    others = [tid for tid in mutex.waiters if tid != mutex.owner]
    waiting = standing(facts, (Park.THROTTLE, Park.THROTTLE_LOCK))
    requests = waiting.requests if isinstance(waiting, Standing) else ()
    disks = disks_in_queue(facts, requests)
    claims = [
        claim(
            f"{who[0].upper()}{who[1:]} waits for the mutex at {mutex.address:#x}, and that mutex's owner is "
            f"{mutex.owner}: itself. "
            "It is not recursive: it can never be had.",
            mutex.cite,
        )
    ]
    if thread is not None and isinstance(thread.frames, Known):
        place = next((name for name in functions(thread) if "throttle_group" in name), "")
        claims.append(claim(f"Its stack goes through {place or 'QEMU code without a name'}.", thread.frames.cite))
    if group:
        claims.append(claim(f"The mutex lies inside throttle group {group}.", mutex.cite))
    if isinstance(parked, Standing) and parked.requests:
        claims.append(
            claim(
                (
                    "A coroutine waits for the member's coroutine lock: it yielded while its thread held the group's "
                    "mutex."
                ),
                *parked.cites,
            )
        )
    if others:
        claims.append(
            claim(f"{count(len(others), 'other thread waits', 'other threads wait')} for the same mutex.", mutex.cite)
        )
    if requests:
        claims.append(
            claim(f"{counted(facts, requests)} {of_disks(disks)} wait behind it.", *(r.cite for r in requests[:6]))
        )
    return Match(
        headline=(
            f"{who[0].upper()}{who[1:]} waits for a throttle group's mutex that it holds itself: every disk of "
            "the group is dead"
        ),
        objects=(*((subjects.ThrottleGroup(group),) if group else ()), owner, *disks),
        confidence="proven" if lock.seen else "likely",
        claims=tuple(claims),
        stands=stand((Park.THROTTLE, Park.THROTTLE_LOCK), requests, (subjects.lock(mutex),)),
        weight=len(mutex.waiters) + len(requests),
    )


SIGNATURES = (
    Signature("throttle-lock-self-deadlock", "throttle", "a throttle group's mutex waits for itself", _self_deadlock),
    Signature("throttle-stale-timer", "throttle", "a throttle timer is older than the limits", _stale),
    Signature("throttle-lost-timer", "throttle", "a throttle queue has no timer", _lost_timer),
    Signature("throttle-timer-wait", "throttle", "requests wait for QEMU's I/O limits", _timer_wait),
)
