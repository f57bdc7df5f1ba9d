"""Edges of condition variables, semaphores and events: to the threads that signal each, or to the condition itself."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.function_names import SIGNALLED_BY
from autopsy.diagnose.queries.engines import IDLE_CALLS
from autopsy.diagnose.queries.threads import condition_of, looks, slept_through, threads
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts, Origin, Role, ThreadFact

# Who ends the wait of each function of QEMU's, by their roles; SIGNALLED_BY has those of whom a name tells. What is in
# neither is told as what it is, a condition with its address. Met on real QEMUs: run_on_cpu, drain_call_rcu,
# iothread_init, and multifd_send with multifd_send_sync_main; of the others only what their names say is known.
BY_ROLE = {
    "run_on_cpu": Role.VCPU,
    "do_run_on_cpu": Role.VCPU,
    "start_exclusive": Role.VCPU,
    "cpu_exec_start": Role.VCPU,
    "qemu_init_vcpu": Role.VCPU,
    "iothread_complete": Role.IOTHREAD,
    "iothread_init": Role.IOTHREAD,
    "drain_call_rcu": Role.CALL_RCU,
}
# Where each sleeps that has done what it was asked for: a vCPU also where its guest halted, an iothread in its loop.
AT_REST = {Role.VCPU: frozenset({"futex"}), Role.IOTHREAD: IDLE_CALLS - {""}}


def condition_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them for the threads that slept through; of stacks that others printed, their frames tell more."""
    if facts.origin is not Origin.CAPTURE:
        return
    for thread in threads(facts):
        function = condition_of(thread)
        if not function or slept_through(thread) is False:
            continue
        look = looks(thread)[0]
        sure = Certainty.SEEN if slept_through(thread) else Certainty.ONCE
        signallers = [other for other in threads(facts) if other is not thread and _signals(facts, other, function)]
        for other in signallers:
            cites = (look.cite, *(seen.cite for seen in looks(other)[:1]))
            yield Wait(subjects.thread(thread), subjects.thread(other), How.SIGNALLED_BY, sure, cites)
        if not signallers:
            address = look.syscall.arguments[0] if look.syscall.arguments else 0
            condition = subjects.Condition(address, function)
            yield Wait(subjects.thread(thread), condition, How.SIGNALLED_BY, sure, (look.cite,))


def _signals(facts: Facts, thread: ThreadFact, function: str) -> bool:
    """Tell whether a thread is one of those that end the wait in a function, and does not rest."""
    role = BY_ROLE.get(function)
    if role is not None and thread.role is role:
        rest = AT_REST.get(role)
        return rest is None or any(look.syscall.name not in rest for look in looks(thread)[:1])
    return thread.comm.startswith(SIGNALLED_BY.get(function, ()) or ("\0",)) and not _has_no_work(facts, thread)


def _has_no_work(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether one of several of a kind sleeps in a futex that is no mutex: it has done its part."""
    if isinstance(facts.locks, Unknown):
        return False
    locked = any(thread.tid in mutex.waiters for mutex in facts.locks.value.mutexes)
    return not locked and any(look.syscall.name == "futex" for look in looks(thread)[:1])
