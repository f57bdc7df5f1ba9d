"""A thread that must not wait, and waits in a blocking call for a program at the other end of a socket.

Libraries such as libssh do it, and so do a name's lookup and a connection that is made with the BQL held.
"""

from __future__ import annotations

from autopsy.bundle.syscalls import PEER_CALLS, POLL_CALLS
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.migration import sends_state
from autopsy.diagnose.queries.requests import confidence, title
from autopsy.diagnose.queries.silence import beyond_their_past
from autopsy.diagnose.queries.socket_peers import (
    about_sockets,
    asks_over_dbus,
    comes_back,
    ends_of,
    leads_to,
    peers_of,
    stands,
    state,
    telling,
)
from autopsy.diagnose.queries.threads import (
    functions,
    named,
    owns_bql,
    slept_through,
    threads,
)
from autopsy.diagnose.queries.wording import count, missing, sentence
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.diagnose.signatures.device_backends import of_a_helper
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import DiskFact, Facts, ListenerFact, Role, ThreadFact

MOST_FRAMES = 3


def _judge(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the threads (evidence/witness/tasks.txt)")
    if isinstance(facts.sockets, Unknown):
        return CannotTell(f"which sockets there are: {missing(facts.sockets)}")
    waiting = [
        (thread, ends)
        for thread in threads(facts)
        if _must_not_wait(facts, thread) and (ends := ends_of(facts, thread))
    ]
    waiting = [(thread, ends) for thread, ends in waiting if not (of_a_helper(facts, thread) or sends_state(thread))]
    silent = [
        (thread, ends) for thread, ends in waiting if slept_through(thread) is not False or comes_back(facts, thread)
    ]
    if not silent:
        if waiting:
            return RuledOut(f"{named(waiting[0][0])} waited for a peer, and went on", (facts.threads.cite,))
        return RuledOut("no thread that must not wait is in a blocking call on a socket", (facts.threads.cite,))
    thread, sockets = silent[0]
    remotes = tuple(dict.fromkeys(socket.remote for socket in sockets if socket.remote)) or _asked_for(facts, thread)
    whom = ", ".join(remotes[:2]) or "another program"
    asked = () if peers_of(sockets) else _listeners(facts, remotes)
    disks = _disks(facts, remotes)
    whose = f", the server of {' and '.join(title(disk) for disk in disks)}," if disks else ""
    claims = [
        claim(
            f"{sentence(named(waiter))} waits in {look.syscall.name} "
            f"{'for an answer over D-Bus, by way of' if asks_over_dbus(waiter) else 'on'} fd "
            f"{', '.join(str(end.fd) for end in ends[:3])}{_under(waiter)}, and serves nothing else meanwhile.",
            look.cite,
            *((waiter.frames.cite,) if isinstance(waiter.frames, Known) else ()),
        )
        for waiter, ends in silent[:3]
        if (look := telling(facts, waiter)) is not None
    ]
    return Match(
        headline=f"{sentence(named(thread))} waits for {whom}{whose} in a blocking call{state(sockets)}"
        f"{f' ({naming.name(subjects.Peer(asked[0].pid, asked[0].comm))})' if asked else ''}",
        objects=(
            *(subjects.disk(disk) for disk in disks),
            subjects.thread(thread),
            *map(subjects.Server, remotes[:2]),
            *peers_of(sockets),
            *(subjects.Peer(listener.pid, listener.comm) for listener in asked),
        ),
        confidence=confidence(proven=slept_through(thread) is True and (stands(sockets) or beyond_their_past(disks))),
        claims=(*claims, *about_sockets(sockets), *map(_about_listener, asked)),
        weight=len(silent),
    )


def _asked_for(facts: Facts, thread: ThreadFact) -> tuple[str, ...]:
    """Return what the main thread asks to be connected to, from QEMU's own memory: its socket does not tell it yet."""
    path = facts.main_loop.value.path if isinstance(facts.main_loop, Known) else ""
    return (path,) if path and thread.role is Role.MAIN else ()


def _listeners(facts: Facts, paths: tuple[str, ...]) -> tuple[ListenerFact, ...]:
    """Return who listens there, where one program alone does: in another mount namespace a path is another file."""
    listening = tuple(listener for listener in facts.listeners if listener.path in paths)
    return listening if len(listening) == 1 else ()


def _about_listener(listener: ListenerFact) -> Claim:
    held = count(listener.waiting, "connection")
    words = f"{naming.name(subjects.Peer(listener.pid, listener.comm))} listens at {listener.path}"
    return claim(f"{words}, and has not accepted {held}; it holds {listener.room} besides the first.", listener.cite)


def _must_not_wait(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether others wait for the thread: it runs an event loop, or holds the BQL."""
    return thread.role in {Role.MAIN, Role.IOTHREAD} or owns_bql(facts, thread.tid)


def _disks(facts: Facts, remotes: tuple[str, ...]) -> tuple[DiskFact, ...]:
    """Return the disks that these servers serve."""
    if isinstance(facts.disks, Unknown):
        return ()
    return tuple(
        disk
        for disk in facts.disks.value
        if any(node.server and leads_to(remote, node.server) for node in disk.nodes for remote in remotes)
    )


def _under(thread: ThreadFact) -> str:
    """Say in which functions it is, the system call's own left out."""
    names = [name for name in dict.fromkeys(functions(thread)) if name and _plain(name) not in PEER_CALLS | POLL_CALLS]
    return f", under {', '.join(names[:MOST_FRAMES])}" if names else ""


def _plain(name: str) -> str:
    return name.removeprefix("__GI_").lstrip("_")


SIGNATURES = (Signature("peer-blocks-thread", "peer", "a peer holds a thread in a blocking call", _judge),)
