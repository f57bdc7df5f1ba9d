"""Edges of mutexes: a thread waits for a lock, and the lock for its owner."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.coroutine_mutexes import ENDED
from autopsy.diagnose.queries.threads import by_tid, slept_through
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts


def lock_waits(facts: Facts) -> Iterator[Wait]:
    """Yield what the futexes told of who waits and who owns, and of coroutine mutexes likewise."""
    if not isinstance(facts.locks, Known):
        return
    for mutex in facts.locks.value.mutexes:
        lock = subjects.lock(mutex)
        for tid in mutex.waiters:
            asleep = slept_through(by_tid(facts)[tid]) if tid in by_tid(facts) else None
            if asleep is not False:
                sure = Certainty.SEEN if asleep else Certainty.ONCE
                yield Wait(subjects.Thread(tid), lock, How.WAITS_FOR_LOCK, sure, (mutex.cite,))
        if mutex.owner:
            yield Wait(lock, subjects.Thread(mutex.owner), How.HELD_BY, Certainty.ONCE, (mutex.cite,))
    for comutex in facts.locks.value.comutexes:
        lock = subjects.Lock(comutex.address)
        for address in comutex.waiters:
            yield Wait(subjects.Request(address), lock, How.WAITS_FOR_LOCK, Certainty.ONCE, (comutex.cite,))
        if comutex.holder_state == "parked" or comutex.holder_state in ENDED:
            yield Wait(lock, subjects.Request(comutex.holder), How.HELD_BY, Certainty.ONCE, (comutex.cite,))
        elif comutex.holder_tid:
            yield Wait(lock, subjects.Thread(comutex.holder_tid), How.HELD_BY, Certainty.ONCE, (comutex.cite,))
