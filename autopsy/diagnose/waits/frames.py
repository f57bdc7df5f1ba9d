"""Edges that the frames of imported evidence imply: who wants which lock, who must have it, and who polls for whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopsy.diagnose.frames.stacks import NamedStack, stacks
from autopsy.diagnose.frames.stacks import WaitKind as Doing
from autopsy.diagnose.frames.thread_waits import MIGRATION, RCU, may_be_call_rcu
from autopsy.diagnose.function_names import READS_RCU
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Origin, Role

# Nobody printed their addresses, and there is one of each that is meant.
BQL = subjects.Lock(0, "the BQL")
GRAPH = subjects.Lock(1, "the block graph's lock")
CONTEXT = subjects.Lock(2, "an AioContext's lock")
READERS = subjects.Lock(3, "RCU's readers")
WRITES = ("bdrv_graph_wrlock", "bdrv_graph_wrlock_drained")
# A thread that waits for a condition has let go of some lock, and frames don't say of which.
KEEPS_LOCKS = frozenset({Doing.POLL, Doing.LOCK, Doing.CALL, Doing.RUNS, Doing.JOIN, Doing.SEMAPHORE, Doing.EVENT})
BACK_END = subjects.Server("the vhost-user back end")
ASKS = ("vhost_user_read", "vhost_user_read_cb")


def frame_waits(facts: Facts) -> Iterator[Wait]:
    """Yield what stacks alone imply, where only one thread can be meant; nothing of a capture, which saw more."""
    if facts.origin is Origin.CAPTURE:
        return
    named_stacks = stacks(facts)
    yield from _bql(facts, named_stacks)
    yield from _context(named_stacks)
    yield from _readers(named_stacks)
    for stack in named_stacks:
        if stack.wait in {Doing.SEMAPHORE, Doing.JOIN} and stack.begins(*MIGRATION):
            yield _edge(stack, subjects.Migration(), How.SIGNALLED_BY)
        if stack.has(*WRITES) and stack.wait in {Doing.POLL, Doing.LOCK}:
            yield _edge(stack, GRAPH, How.WAITS_FOR_LOCK)
        if stack.has(*ASKS) and stack.wait in {Doing.POLL, Doing.CALL}:
            yield _edge(stack, BACK_END, How.POLLS_FOR)


def _edge(stack: NamedStack, on: subjects.Subject, how: How) -> Wait:
    return Wait(subjects.thread(stack.thread), on, how, Certainty.CONSISTENT, (stack.cite,))


def _bql(facts: Facts, named_stacks: Sequence[NamedStack]) -> Iterator[Wait]:
    """Yield who waits for the BQL, and who must have it; where its owner was printed, the locks tell all that."""
    if isinstance(facts.locks, Known) and any(mutex.is_bql for mutex in facts.locks.value.mutexes):
        return
    wanting = [stack for stack in named_stacks if stack.wants_bql]
    holders = [stack for stack in named_stacks if stack.holds_bql and stack.wait in KEEPS_LOCKS]
    for stack in wanting:
        yield _edge(stack, BQL, How.WAITS_FOR_LOCK)
    if len(holders) != 1:
        return
    holder = holders[0]
    if wanting:
        cites = (holder.cite,)
        yield Wait(BQL, subjects.thread(holder.thread), How.HELD_BY, Certainty.CONSISTENT, cites)
    # An iothread ends nothing of what is polled for before it has the lock that the poll goes on under.
    iothreads = [stack for stack in wanting if stack.thread.role is Role.IOTHREAD]
    if holder.wait is Doing.POLL and iothreads:
        yield _edge(holder, subjects.thread(iothreads[0].thread), How.POLLS_FOR)
    joined = [stack for stack in wanting if stack.thread.role in {Role.IOTHREAD, Role.MIGRATION, Role.OTHER}]
    if holder.wait is Doing.JOIN and len(joined) == 1:
        yield _edge(holder, subjects.thread(joined[0].thread), How.JOINS)


def _context(named_stacks: Sequence[NamedStack]) -> Iterator[Wait]:
    """Yield who waits for an AioContext that the only thread that polls must have, for only its owner polls."""
    wanting = [stack for stack in named_stacks if stack.wants_context]
    polling = [stack for stack in named_stacks if stack.wait is Doing.POLL]
    for stack in wanting:
        yield _edge(stack, CONTEXT, How.WAITS_FOR_LOCK)
    if len(wanting) == 1 and len(polling) == 1:
        yield Wait(CONTEXT, subjects.thread(polling[0].thread), How.HELD_BY, Certainty.CONSISTENT, (polling[0].cite,))
        yield _edge(polling[0], subjects.thread(wanting[0].thread), How.POLLS_FOR)


def _readers(named_stacks: Sequence[NamedStack]) -> Iterator[Wait]:
    """Yield who waits for RCU's readers, and is one: it waits for itself."""
    for stack in named_stacks:
        if stack.thread.role is Role.CALL_RCU or may_be_call_rcu(stack) or not stack.has(*RCU):
            continue
        if stack.wait in {Doing.EVENT, Doing.CONDITION, Doing.LOCK}:
            yield _edge(stack, READERS, How.WAITS_FOR_LOCK)
            if stack.has(*READS_RCU):
                yield Wait(READERS, subjects.thread(stack.thread), How.HELD_BY, Certainty.CONSISTENT, (stack.cite,))
