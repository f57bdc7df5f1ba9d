"""Edges of the host's own limits: what waits in its block layer waits for the control group that is at one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from autopsy.diagnose.queries.limits.io_limits import BLOCK_LAYER, held_by
from autopsy.diagnose.waits.kernel import kernel_waits
from autopsy.diagnose.waits.requests import request_waits
from autopsy.diagnose.waits.wait import MOST_WAITS, Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts
from autopsy.facts.model.yield_points import BY_ENGINE


def limit_waits(facts: Facts) -> Iterator[Wait]:
    """Yield one edge from each place where the waiting would end otherwise."""
    limits = held_by(facts)
    if not limits:
        return
    waits = (*islice(kernel_waits(facts), MOST_WAITS), *islice(request_waits(facts), MOST_WAITS))
    for end in _ends(waits):
        for limit in limits:
            yield Wait(end, subjects.ControlGroup(limit.group), How.LIMITED_BY, Certainty.ONCE, (limit.cite,))


def _ends(waits: Iterable[Wait]) -> Iterator[subjects.Subject]:
    """Yield the ends of the waiting that are in the block layer, or on what it does its work for."""
    waits = tuple(waits)
    waiters = {wait.waiter for wait in waits}
    for end in dict.fromkeys(wait.on for wait in waits if wait.on not in waiters):
        match end:
            case subjects.Kernel(wait) if wait == BLOCK_LAYER:
                yield end
            case subjects.Place(park) if park in BY_ENGINE:
                yield end
            case subjects.FileSystem() | subjects.HostDevice():
                yield end
            case _:
                pass
