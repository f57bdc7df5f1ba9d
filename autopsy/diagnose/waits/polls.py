"""Edges of nested polls: a thread that polls inside a drain or a synchronous call waits for the requests that stand."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.socket_peers import unsent
from autopsy.diagnose.waits.requests import standing
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts, Park
from autopsy.facts.model.yield_points import DISK_PARKS


def poll_waits(facts: Facts) -> Iterator[Wait]:
    """Yield one edge for each request: which of them a drain counts, frames do not tell."""
    if isinstance(facts.main_loop, Unknown) or facts.main_loop.value.state != "nested poll":
        return
    loop = facts.main_loop.value
    for request in (*standing(facts, DISK_PARKS - {Park.DRAINED, Park.GRAPH_LOCK}), *unsent(facts)):
        cites = (loop.cite, request.cite)
        yield Wait(subjects.Thread(loop.tid), subjects.Request(request.address), How.POLLS_FOR, Certainty.ONCE, cites)
