"""Tells which mutex that waits for itself is a throttle group's, and by what that is known."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.requests import still
from autopsy.diagnose.queries.threads import by_tid, functions, goes_on
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts, MutexFact, Park

PREFIX = "throttle group"


@dataclass(frozen=True, slots=True)
class ThrottleLock:
    """The mutex; `group` is empty where nothing tells whose it is. Not `seen`: a coroutine at its place implies it."""

    mutex: MutexFact
    group: str
    seen: bool


def self_owned(facts: Facts) -> tuple[MutexFact, ...]:
    """Return the mutexes whose owner waits for them; one that was seen to go on does not."""
    if isinstance(facts.locks, Unknown):
        return ()
    return tuple(
        mutex for mutex in facts.locks.value.mutexes if mutex.owner in mutex.waiters and not goes_on(facts, mutex.owner)
    )


@once
def throttle_lock(facts: Facts) -> ThrottleLock | None:
    """Return a throttle group's mutex whose owner waits for it: its place, its owner's frames or a coroutine tells."""
    waits = bool(still(facts, Park.THROTTLE_LOCK))
    for mutex in self_owned(facts):
        owner = by_tid(facts).get(mutex.owner)
        by_frames = owner is not None and any(PREFIX.replace(" ", "_") in name for name in functions(owner))
        by_heap = mutex.in_object.startswith(PREFIX)
        if by_frames or by_heap or waits:
            group = mutex.in_object.removeprefix(PREFIX).strip() if by_heap else ""
            return ThrottleLock(mutex, group, by_frames or by_heap)
    return None
