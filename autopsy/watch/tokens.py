"""Which block requests of a VM do not move, from one look at its coroutines to the next.

A token is a coroutine's stack, and a digest of what that holds: the same one twice is a coroutine that has not run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.watch.coroutine_look import CoroutineLook
from autopsy.watch.request_shape import Shape

SECOND = 1_000_000_000
MOST_LAG_NS = 5 * SECOND // 2  # what is given to a request before it was first seen, at most
REMEMBERED_NS = 120 * SECOND
# A guest gives a request up after 30 s (SCSI's own time-out): what a limit lets go before is slow, and not stuck.
PATIENCE_NS = 30 * SECOND
OVERDUE_NS = 2 * SECOND  # a timer that has not fired so long after its time does not
ANY = 0  # of what was seen but once, nobody knows what it waited for

Token = tuple[int, bytes]


@dataclass(slots=True)
class SeenRequest:
    """A request that is in flight. `since` is the last look without it, `first` the first one with it.

    It was there no earlier than `earliest`, as far as is accounted for. `due` is when a limit's timer lets it, or one
    before it, go on.
    """

    first: int
    since: int
    earliest: int
    shape: Shape = Shape.UNKNOWN
    kin: int = 0
    due: int | None = None


@dataclass(frozen=True, slots=True)
class RequestsInFlight:
    """What the looks so far tell. Times are the clock's that the looks were given.

    `unmoved` are the ages of those that stand, the oldest first; `moved` counts those that ended or went on between
    the last two looks, `moved_at` is when that was seen last. `since` and `before` are when the oldest was first
    there, and last not; `earliest` is when it may have begun to stand, between two looks of which the latter showed it.
    """

    in_flight: int = 0
    unmoved: tuple[int, ...] = ()
    moved: int = 0
    moved_at: int = 0
    since: int = 0
    before: int = 0
    earliest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A request that went on or ended between two looks, `after` the former and `by` the latter; `first` as of it."""

    after: int
    by: int
    first: int


@dataclass(slots=True)
class RequestTokens:
    """The requests of one VM over time; `update` takes one look after the other."""

    seen: dict[Token, SeenRequest] = field(default_factory=dict)
    departures: dict[int, deque[Departure]] = field(default_factory=dict)
    askable: set[int] = field(default_factory=set)
    looked_at: int = 0
    moved_at: int = 0

    def update(self, look: CoroutineLook, now: int) -> RequestsInFlight:
        """Take a look at the time `now`, and return what stands."""
        tokens = {(coroutine.top, coroutine.digest): coroutine for coroutine in look.parked}
        gone = [token for token in self.seen if token not in tokens]
        moved = 0
        earliest = max(self.looked_at, now - MOST_LAG_NS)
        for token in gone:
            request = self.seen.pop(token)
            if request.shape is not Shape.OTHER:
                kin = ANY if request.shape is Shape.UNKNOWN else request.kin
                self.departures.setdefault(kin, deque()).append(Departure(after=earliest, by=now, first=request.first))
            moved += not self._waits_to_be_asked(token, request)
        if moved:
            self.moved_at = now
        start = earliest if self.looked_at else now
        for token, parked in tokens.items():
            request = self.seen.setdefault(token, SeenRequest(now, start, earliest))
            request.shape, request.kin = parked.shape, parked.kin
            request.due = None if parked.due_in_ns is None else now + parked.due_in_ns
        self._forget(now)
        first_look, self.looked_at = not self.looked_at, now
        held = [request for request in self.seen.values() if request.shape in (Shape.TRACKED, Shape.QUEUED)]
        self.askable |= {top for (top, _), request in self.seen.items() if request.shape is Shape.OTHER}
        self.askable -= {
            top for (top, _), request in self.seen.items() if request.shape in (Shape.TRACKED, Shape.QUEUED)
        }
        unknown = sum(
            request.shape is Shape.UNKNOWN and not self._waits_to_be_asked(token, request)
            for token, request in self.seen.items()
        )
        standing = sorted(
            (since, request.first, earliest)
            for request in held
            for since, earliest in (self._stands_since(request),)
            if request.first < now and not _is_let_go(request, since, now)
        )
        return RequestsInFlight(
            in_flight=len(held) + max(0, unknown - first_look),  # the monitor's dispatcher is not known yet
            unmoved=tuple(now - since for since, _, _ in standing),
            moved=moved,
            moved_at=self.moved_at,
            since=standing[0][1] if standing else 0,
            before=standing[0][0] if standing else 0,
            earliest=standing[0][2] if standing else 0,
        )

    def _waits_to_be_asked(self, token: Token, request: SeenRequest) -> bool:
        """Return whether that is no request, or on the stack of what was none, as the monitor's dispatcher at work."""
        return request.shape is Shape.OTHER or (request.shape is Shape.UNKNOWN and token[0] in self.askable)

    def _stands_since(self, request: SeenRequest) -> tuple[int, int]:
        """Return since when a request stands, and no other that waits for the same and came no later has gone on.

        First by when that was so, then after when it may have been: what was seen once alone may have waited for
        something else, and excuses nobody that came with it from that.

        A slow server or a limit lets the first in the queue go, and those behind stand: that is slow, not stuck. One
        that younger ones overtake is not excused by them.
        """
        like = [one for one in self.departures.get(request.kin, ()) if one.first <= request.first]
        left = like + [one for one in self.departures.get(ANY, ()) if one.first <= request.first]
        return (
            max(request.since, *(departure.by for departure in left)) if left else request.since,
            max(request.earliest, *(departure.after for departure in like)) if like else request.earliest,
        )

    def _forget(self, now: int) -> None:
        for kin in list(self.departures):
            queue = self.departures[kin]
            while queue and now - queue[0].by > REMEMBERED_NS:
                queue.popleft()
            while len(queue) > 256:
                queue.popleft()
            if not queue:
                del self.departures[kin]


def _is_let_go(request: SeenRequest, since: int, now: int) -> bool:
    """Return whether a limit has set the time at which the queue of who stands since then goes on, and soon enough.

    A queue that a drain has let through at once is made up for by a single request that comes after it.
    """
    return request.due is not None and now <= request.due + OVERDUE_NS and request.due <= since + PATIENCE_NS
