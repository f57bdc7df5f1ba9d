"""Edges between threads of QEMU: one waits for the end of another, or for the vCPUs to stop."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.threads import by_role, functions, joins, looks, slept_through, threads
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts, Origin, Role, ThreadFact

PAUSES = frozenset({"pause_all_vcpus"})
AT_REST = frozenset({"futex"})  # where a vCPU sleeps that has stopped, or that its guest has halted


def thread_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them for the threads that slept through; of stacks that others printed, their frames tell more."""
    if facts.origin is not Origin.CAPTURE:
        return
    by_tid = {thread.tid: thread for thread in threads(facts)}
    for thread in by_tid.values():
        if slept_through(thread) is False:
            continue
        if (joined := by_tid.get(joins(thread))) is not None and joined is not thread:
            yield _edge(thread, joined, How.JOINS)
        if PAUSES.intersection(functions(thread)):
            for vcpu in by_role(facts, Role.VCPU):
                if _has_not_stopped(vcpu):
                    yield _edge(thread, vcpu, How.SIGNALLED_BY)


def _edge(thread: ThreadFact, on: ThreadFact, how: How) -> Wait:
    sure = Certainty.SEEN if slept_through(thread) else Certainty.ONCE
    cites = tuple(look.cite for side in (thread, on) for look in looks(side)[:1])
    return Wait(subjects.thread(thread), subjects.thread(on), how, sure, cites)


def _has_not_stopped(vcpu: ThreadFact) -> bool:
    return any(look.syscall.name not in AT_REST for look in looks(vcpu)[:1])
