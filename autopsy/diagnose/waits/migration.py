"""Edges of a migration: who hands the VM's state on waits for the other end, and a guest's page for who takes it."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.queries.kernel_sleepers import SAVES_PAGES, sleepers
from autopsy.diagnose.queries.kernel_stacks import POSTCOPY, SNAPSHOT
from autopsy.diagnose.queries.migration import sends_state
from autopsy.diagnose.queries.socket_peers import socket_of
from autopsy.diagnose.queries.threads import looks, slept_through, threads
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role, ThreadFact


def migration_waits(facts: Facts) -> Iterator[Wait]:
    """Yield where each thread that sends or takes the state waits, and that a page that is not there waits for it."""
    for thread in threads(facts):
        if not (sends_state(thread) or _is_kept(facts, thread)) or slept_through(thread) is False:
            continue
        sure = Certainty.SEEN if slept_through(thread) else Certainty.ONCE
        cite = looks(thread)[0].cite
        for socket in socket_of(facts, thread):
            for peer in socket.peers:
                yield Wait(subjects.thread(thread), subjects.peer(peer), How.OTHER_END, sure, (cite, socket.cite))
        if thread.role is Role.MIGRATION and thread.comm.endswith(TAKES_PAGES):
            yield Wait(subjects.Kernel(POSTCOPY), subjects.thread(thread), How.SERVED_BY, sure, (cite,))
        if _pauses_the_vm(facts):
            yield Wait(subjects.VirtualMachine(facts.vm.name), subjects.thread(thread), How.JOINS, sure, (cite,))
        if thread.comm in SAVES_PAGES:
            yield Wait(subjects.Kernel(SNAPSHOT), subjects.thread(thread), How.SERVED_BY, sure, (cite,))


# `postcopy/listen` before QEMU 9.0 ("migration: Rename thread debug names"), `mig/dst/listen` since.
TAKES_PAGES = ("/listen",)
# While a thread saves or loads the state, the VM is paused: qapi/run-state.json, RunState.
SAVING_STATES = frozenset({"save-vm", "restore-vm"})


def _pauses_the_vm(facts: Facts) -> bool:
    return isinstance(facts.run_state, Known) and facts.run_state.value.status in SAVING_STATES


def _is_kept(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether a thread of a migration, or of a dump, sleeps where storage or a server keeps it."""
    return thread.role is Role.MIGRATION and any(sleeper.thread is thread for sleeper in sleepers(facts))
