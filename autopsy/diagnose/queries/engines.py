"""Tells what an AIO engine has that QEMU's own loops are to take up: the kernel has ended it, or never had it."""

from __future__ import annotations

from autopsy.bundle.records import AioRing, UringState
from autopsy.bundle.syscalls import POLL_CALLS
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.threads import by_role, looks, slept_through
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import Facts, Park, RingsFact, Role, ThreadFact

IDLE_CALLS = POLL_CALLS | {"io_uring_enter", "epoll_pwait2", "restart_syscall", ""}


@once
def held_loops(facts: Facts) -> tuple[ThreadFact, ...]:
    """Return the loops that slept through in a call that is no poll of theirs: they take up nothing meanwhile."""
    return tuple(
        thread
        for thread in by_role(facts, Role.MAIN, Role.IOTHREAD)
        if any(look.syscall.name not in IDLE_CALLS for look in looks(thread)[:1]) and slept_through(thread)
    )


def untaken_completions(rings: RingsFact) -> tuple[tuple[AioRing, ...], tuple[UringState, ...]]:
    """Return the rings in which completions lay through both looks, of Linux AIO and of io_uring."""
    again = {ring.address: ring for ring in rings.aio_again}
    uring_again = {ring.fd: ring for ring in rings.uring_again}
    full = (
        ring
        for ring in rings.aio
        if ring.head != ring.tail and (later := again.get(ring.address)) and later.head == ring.head
    )
    uring = (
        ring
        for ring in rings.uring
        if ring.cq_head is not None
        and ring.cq_head != ring.cq_tail
        and (other := uring_again.get(ring.fd))
        and other.cq_head == ring.cq_head
    )
    return tuple(full), tuple(uring)


def unsent_rings(rings: RingsFact) -> tuple[UringState, ...]:
    """Return the rings of io_uring in which requests lay through both looks that the kernel has not been given."""
    later = {ring.fd: ring for ring in rings.uring_again}
    return tuple(
        ring
        for ring in rings.uring
        if ring.sq_head is not None
        and ring.sq_head != ring.sq_tail
        and ring.fd in later
        and later[ring.fd].sq_head == ring.sq_head
    )


def never_submitted(facts: Facts) -> int:
    """Count the requests that lie in QEMU's own queue while none is in flight that would flush it."""
    if isinstance(facts.heap, Unknown):
        return 0
    queued = 0
    for context in facts.heap.value.contexts:
        for engine in (context.linux_aio, context.uring):
            if engine is not None and engine.in_queue > 0 and engine.in_flight == 0:
                queued += engine.in_queue
    return queued


def done_in_the_pool(facts: Facts) -> int:
    """Count the requests that a pool of worker threads has done, and that were not completed."""
    if isinstance(facts.heap, Unknown):
        return 0
    return sum(context.thread_pool.done for context in facts.heap.value.contexts if context.thread_pool)


@once
def owed_by_loops(facts: Facts) -> frozenset[Park]:
    """Return the engines whose next step is a loop's of QEMU: requests wait there for nobody else."""
    owed = set()
    if isinstance(facts.rings, Known):
        full, uring = untaken_completions(facts.rings.value)
        owed |= {Park.LINUX_AIO} if full else set()
        owed |= {Park.IO_URING} if uring or unsent_rings(facts.rings.value) else set()
    if never_submitted(facts):
        owed |= {Park.LINUX_AIO, Park.IO_URING}
    if done_in_the_pool(facts):
        owed.add(Park.THREADS)
    return frozenset(owed)
