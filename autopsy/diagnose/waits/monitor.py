"""Edges of what only the main loop can do: it answers the monitor, and stops and starts the VM."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.requests import monitor_is_dead
from autopsy.diagnose.queries.threads import by_role
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role


def monitor_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them where a question was left without an answer: a `stop`, or a save, has not ended then either."""
    if not monitor_is_dead(facts):
        return
    for thread in by_role(facts, Role.MAIN):
        cites = (facts.monitor.alive.cite,) if isinstance(facts.monitor.alive, Known) else ()
        for waiter in (subjects.Monitor(facts.vm.name), subjects.VirtualMachine(facts.vm.name)):
            yield Wait(waiter, subjects.thread(thread), How.SERVED_BY, Certainty.ONCE, cites)
