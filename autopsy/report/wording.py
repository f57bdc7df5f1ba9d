"""Says in words where the I/O is stuck, and how sure that is."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.seen_before import seen_stall
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import Facts
from autopsy.report.units import duration

# Where it is, as a person would say it.
PLACES = {
    "guest": "Stuck in the guest: QEMU owes it nothing",
    "device": "Stuck in QEMU's device model",
    "throttle": "Stuck in QEMU's I/O limits",
    "block": "Stuck in QEMU's block layer",
    "job": "Stuck in a block job",
    "aio": "Stuck in QEMU's asynchronous I/O",
    "host": "Stuck in the host's storage or kernel",
    "peer": "Stuck at a program that QEMU depends on",
    "migration": "Stuck in a migration",
    "control": "Stuck in QEMU's main loop or monitor",
    "process": "The whole process stands still, or has ended",
    "vm-state": "The VM is paused, not stuck",
    "none": "Nothing is stuck",
    "unknown": "Where it is stuck cannot be told",
}


SURE = {
    "proven": "the mechanism itself was seen",
    "likely": "the evidence speaks for it, and for nothing else that was seen",
    "possible": "the evidence allows it, and does not decide",
    "consistent": "what others took fits it; it was one look, with no clock, and not all was taken",
}


SURE_OF_NOTHING = {
    "proven": "QEMU answers, and no sign of trouble was found",
    "likely": "no sign of trouble was found in what could be looked at",
    "possible": "no sign of trouble was found in the little that could be looked at",
    "consistent": "what others took shows no sign of trouble",
}


@dataclass(frozen=True, slots=True)
class Stalled:
    """How long the disks have completed nothing, or why that cannot be told."""

    words: str
    cites: tuple[Cite, ...] = ()


def stalled_for(facts: Facts, diagnosis: Diagnosis) -> Stalled:
    """Say for how long the disks that the diagnosis names have completed nothing, by QEMU's own counters."""
    if diagnosis.where == "none":
        return Stalled("nothing is")
    stuck = {path.disk for path in diagnosis.paths if path.is_stuck}
    stalls = []
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        stats = disk.stats.value if isinstance(disk.stats, Known) else None
        moved = isinstance(disk.completed, Known) and disk.completed.value > 0
        if title(disk) in stuck and stats is not None and not moved:
            if stats.idle_ns is not None:
                stalls.append((stats.idle_ns / 1e9, disk.name, stats.cite))
            elif not stats.completed:
                return Stalled(
                    f"cannot be told: disk {disk.name} has completed nothing since QEMU began", (stats.cite,)
                )
    if not stalls and (seen := seen_stall(facts)) is not None:
        ago = duration((facts.times.began_ns - seen.began_ns) / 1e9)
        return Stalled(f"for {ago} when the capture began, as a watch saw: {seen.what}", (seen.cite,))
    if not stalls:
        return Stalled("cannot be told: no counter says when the last request completed")
    longest, name, cite = max(stalls)
    return Stalled(f"for {duration(longest)} when the capture began: disk {name} has completed nothing since", (cite,))


def apart(facts: Facts) -> float:
    """Return how many seconds lay between the two looks: those at the threads, for they were read at both."""
    for thread in facts.threads.value if isinstance(facts.threads, Known) else ():
        if isinstance(thread.movement, Known):
            return thread.movement.value.seconds
    return facts.times.gap_seconds
