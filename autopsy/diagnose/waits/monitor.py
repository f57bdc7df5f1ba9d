"""Edges of QEMU's monitor: it is answered by the main loop, which has something else to do."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.requests import monitor_is_dead
from autopsy.diagnose.queries.threads import by_role
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role


def monitor_waits(facts: Facts) -> Iterator[Wait]:
    """Yield one edge where a question was left without an answer."""
    if not monitor_is_dead(facts):
        return
    for thread in by_role(facts, Role.MAIN):
        cites = (facts.monitor.alive.cite,) if isinstance(facts.monitor.alive, Known) else ()
        asked = subjects.Monitor(facts.vm.name)
        yield Wait(asked, subjects.thread(thread), How.SERVED_BY, Certainty.ONCE, cites)
