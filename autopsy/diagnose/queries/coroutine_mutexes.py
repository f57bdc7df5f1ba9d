"""What the holders of coroutine mutexes do: a request that waits for one waits for whatever its holder waits for."""

from __future__ import annotations

from collections import Counter

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.requests import Standing
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.signature import claim
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoMutexFact, Facts
from autopsy.facts.subjects import Request

MOST = 4
ENDED = frozenset({"pooled", "gone"})


@dataclass(frozen=True, slots=True)
class HeldMutexes:
    """What is known of the mutexes that some requests wait for.

    `tids` are the threads that a holder runs on, `ended` the holders that nobody will ever resume.
    `orphaned`: every holder has ended. `knotted`: each waits in a ring.
    """

    claims: tuple[Claim, ...]
    tids: frozenset[int]
    ended: tuple[Request, ...]
    orphaned: bool
    knotted: bool


def held(facts: Facts, waiting: Standing) -> HeldMutexes:
    """Look up who holds what these requests wait for."""
    by_waiter = {address: mutex for mutex in of(facts) for address in mutex.waiters}
    awaited = [by_waiter.get(request.address) for request in waiting.requests]
    mutexes = Counter(mutex for mutex in awaited if mutex is not None)
    return HeldMutexes(
        claims=tuple(
            claim(
                f"{count(number, 'of them waits', 'of them wait')} for the coroutine mutex at {mutex.address:#x}: "
                f"{words(facts, mutex)}.",
                mutex.cite,
            )
            for mutex, number in mutexes.most_common(MOST)
        ),
        tids=frozenset(mutex.holder_tid for mutex in mutexes if mutex.holder_tid),
        ended=tuple(Request(mutex.holder) for mutex in mutexes if mutex.holder_state in ENDED),
        orphaned=bool(awaited) and all(mutex is not None and mutex.holder_state in ENDED for mutex in awaited),
        knotted=bool(awaited) and all(mutex is not None and mutex.in_knot for mutex in awaited),
    )


def of(facts: Facts) -> tuple[CoMutexFact, ...]:
    """Return the coroutine mutexes, none where the locks are unknown."""
    return facts.locks.value.comutexes if isinstance(facts.locks, Known) else ()


def words(facts: Facts, mutex: CoMutexFact) -> str:
    """Say what its holder does."""
    if mutex.in_knot:
        return f"its holder, coroutine {mutex.holder:#x}, waits in turn for one of these requests"
    match mutex.holder_state:
        case "parked":
            parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
            park = next(
                (coroutine.park.words for coroutine in parked if coroutine.address == mutex.holder), "is parked"
            )
            return f"its holder, coroutine {mutex.holder:#x}, {park}"
        case "running":
            on = f" on thread {mutex.holder_tid}" if mutex.holder_tid else ""
            return f"its holder, coroutine {mutex.holder:#x}, runs{on}"
        case "pooled" | "gone":
            return f"its holder, coroutine {mutex.holder:#x}, has ended: nobody will unlock it"
        case "handed over":
            return "it is being handed over to the first of them"
        case "unclear":
            return f"what its holder, coroutine {mutex.holder:#x}, does could not be told"
