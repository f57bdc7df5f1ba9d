"""What a healthy VM is accounted for by, and what is left over: no thread, device or counter counts as nothing."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle.syscalls import DESCRIPTOR_CALLS, POLL_CALLS, SLEEP_CALLS
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.below import is_stopped, own_daemons
from autopsy.diagnose.queries.kernel_stacks import family, waits_for
from autopsy.diagnose.queries.peers.programs import about_thread, asleep, cannot_move, to_still, why_silent
from autopsy.diagnose.queries.requests import called, passed, title
from autopsy.diagnose.queries.silence import overtaken
from autopsy.diagnose.queries.socket_peers import leads_to, of_monitor, socket_of, stands, state
from autopsy.diagnose.queries.threads import (
    by_tid,
    condition_of,
    descriptor,
    joins,
    looks,
    named,
    polls_inside,
    slept_through,
    threads,
)
from autopsy.diagnose.queries.wording import count, sentence
from autopsy.diagnose.signature import claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import (
    Asked,
    CoroutineFact,
    DiskFact,
    Facts,
    Park,
    Role,
    SocketFact,
    ThreadFact,
    ThreadSnapshot,
)
from autopsy.facts.model.yield_points import DISK_PARKS, THROTTLED

MAY_NOT = "may not answer"  # of who asks one that stands still: whether it waits for that one, nobody saw

# What each kind of thread sleeps in where nobody has work for it. A worker is woken by a futex, or by its own timeout.
RINGS = frozenset({"io_uring_enter", "io_getevents"})
SIGNALS = frozenset({"rt_sigtimedwait", "rt_sigsuspend"})
INTERRUPTIBLE = SLEEP_CALLS | POLL_CALLS | SIGNALS | {"futex"}  # nobody is in State D there, but by a freezer
IDLE = {
    Role.MAIN: POLL_CALLS,
    Role.IOTHREAD: POLL_CALLS | RINGS,
    Role.MONITOR: POLL_CALLS,
    Role.VCPU: frozenset({"ioctl", "futex", *SLEEP_CALLS, *SIGNALS}),  # a dirty limit has it sleep for a time
    Role.WORKER: frozenset({"futex"}),
    Role.CALL_RCU: frozenset({"futex", *SLEEP_CALLS}),
    Role.MIGRATION: frozenset({"futex", *SLEEP_CALLS, *POLL_CALLS}),
    Role.OTHER: frozenset({"futex", *SLEEP_CALLS, *POLL_CALLS, *RINGS, *SIGNALS}),
}
PAST_QEMU = ("vhost-user-blk", "vhost-user-scsi", "vhost-user-fs")  # devices whose back end answers the guest itself
ASK_STORAGE = frozenset({"query-block", "query-named-block-nodes"})
PASSING_BY = DISK_PARKS - THROTTLED  # the limit itself explains why one stands in its queue
CONNECTED_FOR_GOOD = frozenset({"nbd"})  # the other network drivers may connect when there is work


@once
def unexplained(facts: Facts) -> tuple[ThreadFact, ...]:
    """Return the threads that slept through both looks in a call that is none that they rest in.

    A thread in State D is among them; what a kernel stack of a known family explains is not.
    """
    sleepers = tuple(thread for thread in threads(facts) if _is_unexplained(facts, thread))
    # What stands in the freezer is in State D in whatever call it was: all of them together are no finding each.
    return () if len(sleepers) * 2 > len(threads(facts)) else sleepers


def _is_unexplained(facts: Facts, thread: ThreadFact) -> bool:
    look = next(iter(looks(thread)), None)
    if look is None or thread.role is Role.KERNEL or slept_through(thread) is not True:
        return False
    if look.state not in {"S", "D"} or not look.syscall.name or family(look) is not None:
        return False
    if look.syscall.name not in (INTERRUPTIBLE if look.state == "D" else IDLE[thread.role]):
        return True
    # A library's own threads rest in conditions, and some join one another.
    if look.syscall.name in POLL_CALLS | RINGS and polls_inside(thread):
        return True
    return thread.role is not Role.OTHER and (condition_of(thread) != "" or joins(thread) in by_tid(facts))


def about(facts: Facts, thread: ThreadFact) -> Claim:
    """Say where a thread sleeps: which call, on what, and what for as far as its kernel stack tells."""
    look = looks(thread)[0]
    what = f"for a condition in {function}" if (function := condition_of(thread)) else waits_for(look)
    what = f"for the end of thread {joined}" if (joined := joins(thread)) in by_tid(facts) else what
    return claim(
        f"{sentence(named(thread))} sleeps in {look.syscall.name}{_on(facts, thread, look)}, State {look.state}, "
        f"{look.wchan or 'wchan unknown'}{f': it waits {what}' if what else ''}.",
        look.cite,
        look.stack_cite,
    )


def _on(facts: Facts, thread: ThreadFact, look: ThreadSnapshot) -> str:
    if look.syscall.name not in DESCRIPTOR_CALLS or not look.syscall.arguments:
        return ""
    sockets = socket_of(facts, thread)
    if sockets and sockets[0].remote:
        return f" on {'' if sockets[0].family == 'pipe' else 'a socket to '}{sockets[0].remote}"
    file = descriptor(facts, look.syscall.arguments[0])
    return f" on {file.target}" if file is not None and file.kind != "other" else ""


@once
def left_over(facts: Facts) -> tuple[Claim, ...]:
    """Return what keeps a VM from being proven healthy: each is nothing that was seen to be wrong."""
    return (
        *_threads(facts),
        *_devices(facts),
        *_other_ends(facts),
        *_disks(facts),
        *whether_they_go_on(facts),
        *_not_asked(facts),
        *_left_out(facts),
    )


def _not_asked(facts: Facts) -> Iterator[Claim]:
    """Yield that nobody asked for the disks' nodes where that could have blocked: what they lie on may not answer."""
    alive = facts.monitor.alive
    if not (isinstance(alive, Known) and alive.value):
        return
    if not any(_asks_storage(asked) for asked in facts.monitor.asked):
        yield claim("QEMU was not asked for its disks and their nodes: what they lie on may not answer.", alive.cite)


def _asks_storage(asked: Asked) -> bool:
    return asked.exchange.question in ASK_STORAGE and asked.exchange.outcome == "answered"


def _left_out(facts: Facts) -> Iterator[Claim]:
    """Yield what a limit of ours kept out of the evidence: nobody has looked there."""
    for omission in facts.left_out:
        if omission.requests:
            yield claim(f"{sentence(omission.what)}: {omission.why}.", omission.cite)


def _threads(facts: Facts) -> Iterator[Claim]:
    for thread in unexplained(facts)[:4]:
        yield about(facts, thread)
    for thread in threads(facts):
        match looks(thread):
            # No healthy host has a thread wait there, however shortly: it began to between the looks.
            case (_, last) if (known := family(last)) is not None and not known.passes:
                words = f"{sentence(named(thread))} waited for {known.words} at the last look"
                yield claim(f"{words}: whether it goes on was not seen.", last.cite, last.stack_cite)


def _devices(facts: Facts) -> Iterator[Claim]:
    for helper in facts.helpers:
        if not any(socket.peers for socket in helper.sockets):
            yield claim(f"What serves {helper.model} {helper.device} was not seen: {helper.address}.", helper.cite)
        if helper.model.startswith(PAST_QEMU):
            words = f"What the back end of {helper.device} has of the guest's requests"
            yield claim(f"{words} passes QEMU by: nobody saw whether it answers them.", helper.cite)
    for helper in facts.helpers:
        peers = [peer for end in helper.sockets for peer in end.peers]
        yield from (about_thread(sleeper) for sleeper in asleep(peers))
        if any(map(to_still, peers)):
            yield claim(f"The back end of {helper.device} {MAY_NOT}: {why_silent(peers)}.", helper.cite)


def _other_ends(facts: Facts) -> Iterator[Claim]:
    """Yield that a program at the other end of a connection stands still, where nothing else tells of it.

    A network's, a console's: the guest may wait for it. The monitor's client is the manager, of which its own
    signature tells.
    """
    known = {socket.fd for helper in facts.helpers for socket in helper.sockets}
    known |= {socket.fd for socket in of_monitor(facts)}
    servers = tuple(node.server for node in facts.nodes if node.server)
    for socket in _last_sockets(facts):
        still = [peer for peer in socket.peers if cannot_move(peer)]
        is_server = any(leads_to(socket.remote, server) for server in servers) if socket.remote else False
        if still and socket.fd not in known and not is_server and socket.state != "LISTEN":
            known.add(socket.fd)
            words = f"{naming.name(subjects.peer(still[0]))}, at the other end of fd {socket.fd}, stands still"
            yield claim(
                f"{sentence(words)}{f' ({socket.remote})' if socket.remote else ''}.", socket.cite, still[0].cite
            )


def _disks(facts: Facts) -> Iterator[Claim]:
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        if disk.is_export and isinstance(disk.stats, Unknown):
            yield claim(f"Nothing tells whether requests of {called(disk)} have failed: QEMU counts none.", disk.cite)
        still = not (isinstance(disk.completed, Known) and disk.completed.value > 0)
        if still and isinstance(disk.stats, Known) and disk.stats.value.failed:
            failures = count(disk.stats.value.failed, "request")
            yield claim(f"Disk {title(disk)} has failed {failures} since QEMU began.", disk.stats.cite)
        if still and isinstance(disk.in_flight, Known) and disk.in_flight.value and isinstance(disk.completed, Known):
            held = count(disk.in_flight.value, "request")
            yield claim(
                f"{sentence(called(disk))} holds {held}, and completed none.", disk.in_flight.cite, disk.completed.cite
            )
        yield from no_connection(facts, disk)


def whether_they_go_on(facts: Facts) -> Iterator[Claim]:
    """Yield a busy disk's requests that nobody saw leave their place: one after another was there, or one for good."""
    for request in overtaken(facts):
        yield claim(f"{sentence(request.text)}: whether it goes on was not seen.", *request.cites)
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    if left := [request for request in parked if request.park is Park.GIVEN_UP]:
        words = f"{count(len(left), 'request')} that nobody waits for any more did not end, as of a backup that gave up"
        yield claim(f"{words}.", *(request.cite for request in left[:4]))
    if doubtful := not_seen_to_go_on(facts):
        words = "was not seen to go on: only others such as it ended meanwhile"
        if len(doubtful) > 1:
            words = "were not seen to go on: only others such as they ended meanwhile"
        yield claim(f"{count(len(doubtful), 'request')} {words}.", *(request.cite for request in doubtful[:4]))


@once
def not_seen_to_go_on(facts: Facts) -> tuple[CoroutineFact, ...]:
    """Return the requests of which only their disk's counters say that they go on, for others such as they ended."""
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return tuple(request for request in parked if request.park in PASSING_BY and passed(facts, request))


def no_connection(facts: Facts, disk: DiskFact) -> Iterator[Claim]:
    """Yield each server of a disk that a connection should lead to for good, and none was seen to."""
    if not isinstance(facts.sockets, Known):
        return
    ends = [socket.remote for socket in facts.sockets.value if socket.remote and socket.state != "LISTEN"]
    for node in disk.nodes:
        if node.driver in CONNECTED_FOR_GOOD and node.server and not any(leads_to(end, node.server) for end in ends):
            yield claim(
                f"No connection to {node.server} was seen, the server of {called(disk)}.",
                node.cite,
                facts.sockets.cite,
            )


def idle_peers(facts: Facts) -> Iterator[Claim]:
    """Yield a clause for each server of a node, and each FUSE daemon, that stands still: the next request will, too.

    The last look counts: one that was stopped, and went on, holds nothing up, and one that was stopped since does.
    """
    yield from _servers(facts)
    last = facts.fuse_again if isinstance(facts.fuse_again, Known) else facts.fuse
    for served in last.value if isinstance(last, Known) else ():
        if is_stopped(served):
            daemon = own_daemons(served)[0]
            words = f"the FUSE daemon of {served.path} is stopped, process {daemon.pid} ({daemon.comm})"
            yield claim(words, served.cite, daemon.cite)
        elif any(map(to_still, own_daemons(served))):
            words = f"the FUSE daemon of {served.path} {MAY_NOT}: {why_silent(own_daemons(served))}"
            yield claim(words, served.cite)


def _servers(facts: Facts) -> Iterator[Claim]:
    whose = {
        node.server: f"the server of {called(disk)}"
        for disk in (facts.disks.value if isinstance(facts.disks, Known) else ())
        for node in disk.nodes
        if node.server
    }
    for node in facts.nodes:
        if node.server:
            whose.setdefault(node.server, f"the server of node {node.name}")
    for server, name in whose.items():
        sockets = _to(facts, server)
        if stands(sockets) or any(to_still(peer) for socket in sockets for peer in socket.peers):
            moves = "does not move" if stands(sockets) else MAY_NOT
            words = state(sockets).removeprefix(": ")
            yield claim(f"{name}, {server}, {moves}: {words}", *(socket.cite for socket in sockets[:2]))


def _to(facts: Facts, server: str) -> tuple[SocketFact, ...]:
    return tuple(
        socket
        for socket in _last_sockets(facts)
        if socket.state not in {"LISTEN", "UNCONN"} and socket.remote and leads_to(socket.remote, server)
    )


def _last_sockets(facts: Facts) -> tuple[SocketFact, ...]:
    last = facts.sockets_again if isinstance(facts.sockets_again, Known) else facts.sockets
    return last.value if isinstance(last, Known) else ()


def about_idle(claims: tuple[Claim, ...]) -> str:
    """Say in a headline that nothing is stuck yet, and which program will hold up the next request."""
    if not claims:
        return ""
    may = "may" if f" {MAY_NOT}: " in claims[0].text else "will"
    return f"Nothing is stuck yet, but {claims[0].text}: whatever is asked of it next {may} wait"


def as_sentences(claims: tuple[Claim, ...]) -> Iterator[Claim]:
    """Yield them as sentences."""
    yield from (claim(f"{sentence(clause.text)}.", *clause.cites) for clause in claims)
