"""Puts the graph of waits together, beside the signatures: what those call the cause must be where it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.queries.migration import sends_state
from autopsy.diagnose.queries.threads import threads as threads_of
from autopsy.diagnose.waits import (
    behind,
    calls,
    conditions,
    frames,
    jobs,
    kernel,
    limits,
    locks,
    loops,
    migration,
    monitor,
    polls,
    requests,
    threads,
)
from autopsy.diagnose.waits.ends import Ends, Numbered, ends_of, numbered
from autopsy.diagnose.waits.wait import MOST_WAITS, Wait
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts, Role
from autopsy.facts.model.yield_points import Layer
from autopsy.facts.subjects import Subject

BUILDERS: tuple[tuple[str, Callable[[Facts], Iterator[Wait]]], ...] = (
    ("locks", locks.lock_waits),
    ("threads", threads.thread_waits),
    ("conditions", conditions.condition_waits),
    ("kernel", kernel.kernel_waits),
    ("requests", requests.request_waits),
    ("behind", behind.behind_waits),
    ("limits", limits.limit_waits),
    ("loops", loops.loop_waits),
    ("calls", calls.call_waits),
    ("openings", calls.opening_waits),
    ("processes", calls.process_waits),
    ("jobs", jobs.job_waits),
    ("polls", polls.poll_waits),
    ("migration", migration.migration_waits),
    ("monitor", monitor.monitor_waits),
    ("frames", frames.frame_waits),
)
# What must not wait: the guest's requests, the loops that serve them, its CPUs, and whoever sends it elsewhere.
LOOPS = (Role.MAIN, Role.IOTHREAD, Role.VCPU, Role.MONITOR, Role.MIGRATION)


@dataclass(frozen=True)
class Graph:
    """Every wait that was seen. `trouble` names the kinds of evidence that failed, or were more than a VM has."""

    waits: tuple[Wait, ...]
    roots: tuple[Subject, ...]
    trouble: tuple[str, ...]

    @cached_property
    def ends(self) -> Ends:
        """Where the waiting ends."""
        return ends_of(self.numbered, self.roots)

    @cached_property
    def numbered(self) -> Numbered:
        """The waits by numbers."""
        return numbered(self.waits)


def build(facts: Facts) -> Graph:
    """Return the graph. A builder that fails costs its own edges only, and is told."""
    waits: list[Wait] = []
    trouble = []
    for name, builder in BUILDERS:
        try:
            edges = list(islice(builder(facts), MOST_WAITS + 1))
        except Exception as error:  # noqa: BLE001 - a bug in one kind of evidence must not cost the others their edges
            trouble.append(f"{name}: {type(error).__name__}: {error}"[:200])
            continue
        if len(edges) > MOST_WAITS:
            trouble.append(f"{name}: more than {MOST_WAITS} waits, the rest left out")
        waits += edges[:MOST_WAITS]
    loops_of = [subjects.thread(thread) for thread in threads_of(facts) if thread.role in LOOPS or sends_state(thread)]
    asked = dict.fromkeys(wait.waiter for wait in waits if isinstance(wait.waiter, subjects.Request | subjects.Device))
    return Graph(tuple(waits), (*loops_of, *asked), tuple(trouble))


OF_A_PLACE: dict[Layer, Where] = {
    Layer.THROTTLE: "throttle",
    Layer.BLOCK: "block",
    Layer.ENGINE: "aio",
    Layer.PEER: "peer",
    Layer.BESIDE: "block",
}


def where(sink: Subject) -> Where:  # noqa: C901, PLR0911 - one return for each station on a request's way
    """Say where a sink is. A thread that waits for nobody known is QEMU's own business."""
    match sink:
        case subjects.Server() | subjects.Peer():
            return "peer"
        case subjects.FileSystem() | subjects.HostDevice() | subjects.Kernel() | subjects.ControlGroup():
            return "host"
        case subjects.ThrottleGroup():
            return "throttle"
        case subjects.Place(park):
            return OF_A_PLACE[park.layer]
        case subjects.Driver() | subjects.Disk() | subjects.Export() | subjects.Request():
            return "block"
        case subjects.Device():
            return "device"
        case subjects.Job():
            return "job"
        case subjects.Migration():
            return "migration"
        case subjects.Process() | subjects.Tracer():
            return "process"
        case subjects.Thread() | subjects.Lock() | subjects.Condition() | subjects.File():
            return "control"
        case subjects.Monitor() | subjects.MonitorClient():
            return "control"
        case subjects.VirtualMachine():
            return "vm-state"
