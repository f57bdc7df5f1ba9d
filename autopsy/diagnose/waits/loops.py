"""Edges to QEMU's own loops: what the guest has kicked, and what QEMU asks of itself, waits until one takes it up."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.engines import held_loops
from autopsy.diagnose.queries.notifiers import idle_queues
from autopsy.diagnose.queries.socket_peers import programs
from autopsy.diagnose.queries.threads import looks
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts


def loop_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them where a loop slept through in a call that is no poll of its own; whose a device is, is not known."""
    held = held_loops(facts)
    devices = sorted({queue.device for queue in idle_queues(facts)}) if held else ()
    for thread in held:
        loop, cites = subjects.thread(thread), (looks(thread)[0].cite,)
        for device in devices:
            yield Wait(subjects.Device(device), loop, How.TAKEN_UP_BY, Certainty.ONCE, cites)
    yield from _of_itself(facts)


def _of_itself(facts: Facts) -> Iterator[Wait]:
    """Yield that what this QEMU serves to itself, an export of its own, is for its main loop, where that does not come.

    An export may be served by an iothread: then its main loop still has to accept the connection.
    """
    loop = facts.main_loop
    if isinstance(loop, Unknown) or loop.value.state not in {"nested poll", "blocked in a system call"}:
        return
    for peer in programs(facts):
        if peer.pid == facts.vm.pid:
            cites = (peer.cite, loop.value.cite)
            yield Wait(subjects.peer(peer), subjects.Thread(loop.value.tid), How.TAKEN_UP_BY, Certainty.ONCE, cites)
            return
