"""Edges of threads in a blocking call: to whoever has, or opens, the other end of a socket or FIFO, or to the file."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle.syscalls import PEER_CALLS
from autopsy.diagnose.queries.kernel_stacks import family
from autopsy.diagnose.queries.socket_peers import comes_back, ends_of, place_of, socket_of, telling
from autopsy.diagnose.queries.threads import descriptor, looks, slept_through, threads
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Role, SocketFact, ThreadFact

RESTS = frozenset({Role.OTHER, Role.KERNEL})  # a library's threads may rest in any call


def call_waits(facts: Facts) -> Iterator[Wait]:
    """Yield them for QEMU's own threads, where no other builder knows what such a call waits for."""
    for thread in threads(facts):
        if thread.role in RESTS or not looks(thread):
            continue
        if slept_through(thread) is False and not comes_back(facts, thread):
            continue
        look = telling(facts, thread)
        if look is None or look.state != "S" or family(look) is not None:
            continue
        sure = Certainty.SEEN if slept_through(thread) else Certainty.ONCE
        ends = ends_of(facts, thread) or _pipes(facts, thread)
        for end in ends:
            cites = (look.cite, end.cite)
            if end.remote:
                yield Wait(subjects.thread(thread), place_of(end), How.OTHER_END, sure, cites)
            for peer in end.peers:
                waiter = place_of(end) if end.remote else subjects.thread(thread)
                yield Wait(waiter, subjects.peer(peer), How.SERVED_BY, Certainty.ONCE, (*cites, peer.cite))
        for file in () if ends else _files(facts, thread):
            yield Wait(subjects.thread(thread), file, How.SLEEPS_IN, sure, (look.cite,))


def opening_waits(facts: Facts) -> Iterator[Wait]:
    """Yield the way from each such thread to its FIFO, and on to each program that is in open(2) of it, too."""
    asleep = {thread.tid: slept_through(thread) for thread in threads(facts)} if facts.fifo_openings else {}
    for opening in facts.fifo_openings:
        if asleep.get(opening.tid) is False:
            continue
        sure = Certainty.SEEN if asleep.get(opening.tid) else Certainty.ONCE
        fifo = subjects.File(opening.path)
        yield Wait(subjects.Thread(opening.tid), fifo, How.SLEEPS_IN, sure, (opening.cite,))
        for peer in opening.peers:
            yield Wait(fifo, subjects.peer(peer), How.OTHER_END, Certainty.ONCE, (opening.cite, peer.cite))


def process_waits(facts: Facts) -> Iterator[Wait]:
    """Yield the way from each thread that waits in the kernel for another process to those that it can be."""
    asleep = {thread.tid: slept_through(thread) for thread in threads(facts)} if facts.process_waits else {}
    for wait in facts.process_waits:
        if asleep.get(wait.tid) is False:
            continue
        how = How.JOINS if wait.kind == "child" else How.SIGNALLED_BY
        for peer in wait.peers:
            sure = Certainty.ONCE if len(wait.peers) == 1 else Certainty.CONSISTENT
            yield Wait(subjects.Thread(wait.tid), subjects.peer(peer), how, sure, (wait.cite, peer.cite))


def _pipes(facts: Facts, thread: ThreadFact) -> tuple[SocketFact, ...]:
    """Return the pipe that a thread reads or writes."""
    if looks(thread)[0].syscall.name not in PEER_CALLS:
        return ()
    return tuple(end for end in socket_of(facts, thread) if end.family == "pipe")


def _files(facts: Facts, thread: ThreadFact) -> Iterator[subjects.File]:
    """Yield the file that a thread opens, or the FIFO that it reads or writes, where nobody else has it."""
    call = looks(thread)[0].syscall
    if thread.role is Role.MAIN and isinstance(facts.main_loop, Known) and facts.main_loop.value.path:
        yield subjects.File(facts.main_loop.value.path)
    elif call.name in PEER_CALLS and call.arguments:
        file = descriptor(facts, call.arguments[0])
        if file is not None and file.kind == "file":
            yield subjects.File(file.target)
