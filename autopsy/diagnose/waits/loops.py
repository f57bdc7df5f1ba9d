"""Edges to QEMU's own loops: what the guest has kicked waits until one of them takes it up."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.engines import held_loops
from autopsy.diagnose.queries.notifiers import idle_queues
from autopsy.diagnose.queries.threads import looks
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts


def loop_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them where a loop slept through in a call that is no poll of its own; whose a device is, is not known."""
    held = held_loops(facts)
    devices = sorted({queue.device for queue in idle_queues(facts)}) if held else ()
    for thread in held:
        loop, cites = subjects.thread(thread), (looks(thread)[0].cite,)
        for device in devices:
            yield Wait(subjects.Device(device), loop, How.TAKEN_UP_BY, Certainty.ONCE, cites)
