"""What the sockets tell of the programs at their other ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.bundle.syscalls import PEER_CALLS, POLL_CALLS
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries.peers.programs import (
    about_chain,
    about_thread,
    asked_in_turn,
    asleep,
    called,
    cannot_move,
    stands_still,
    why_silent,
)
from autopsy.diagnose.queries.requests import monitor_is_dead
from autopsy.diagnose.queries.threads import blocks_main_loop, condition_of, descriptor, functions, looks, threads
from autopsy.diagnose.signature import claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import (
    CoroutineFact,
    Facts,
    Park,
    PeerFact,
    SocketFact,
    ThreadFact,
    ThreadSnapshot,
)

DBUS_WORKER = "gdbus"  # the name of the thread in which GLib talks to every bus
SILENT = ": it is connected, and silent"


MASTERS = frozenset({"/dev/ptmx", "/dev/pts/ptmx"})  # the same link, whichever terminal it is of


def socket_of(facts: Facts, thread: ThreadFact) -> tuple[SocketFact, ...]:
    """Return the socket that a thread's system call works on: its first argument in all those that wait for a peer."""
    arguments = looks(thread)[0].syscall.arguments if looks(thread) else ()
    if isinstance(facts.sockets, Unknown) or not arguments:
        return ()
    alike = _alike(facts, arguments[0])
    return tuple(socket for socket in facts.sockets.value if socket.fd in alike)


def _alike(facts: Facts, fd: int) -> frozenset[int]:
    """Return the descriptors that are the same end as this one, as stdout and stderr are: one of them is told of."""
    opened = descriptor(facts, fd)
    if opened is None or opened.target in MASTERS or isinstance(facts.descriptors, Unknown):
        return frozenset({fd})
    return frozenset({fd, *(file.fd for file in facts.descriptors.value if file.target == opened.target)})


def leads_to(remote: str, server: str) -> bool:
    """Tell whether a socket's other end is a server, as a node writes it: the port tells, for hosts have names."""
    port = server.rpartition(":")[2].split("/")[0]
    if remote.startswith(("/", "@")):
        return remote in server
    return bool(port) and port.isdecimal() and remote.endswith(f":{port}")


def state(sockets: tuple[SocketFact, ...]) -> str:
    """Say in a clause what the sockets tell of the program at their other end."""
    if words := why_silent(_programs(sockets)):
        return f": {words}"
    if gone := next((socket for socket in sockets if socket.state in {"CLOSE-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"}), None):
        return f": the connection is half closed ({gone.state})"
    if opening := next((socket for socket in sockets if socket.state == "SYN-SENT"), None):
        return f": {opening.remote} does not accept the connection"
    if sockets and all(socket.state == "UNCONN" for socket in sockets):
        return ": whoever listens there does not accept the connection"
    if asked := next((socket for socket in sockets if not socket.accepted), None):
        who = f", {', '.join(map(called, asked.peers[:2]))}," if asked.peers else ""
        return f": whoever listens there{who} has not accepted the connection"
    return SILENT if any(socket.family != "pipe" for socket in sockets) else ""


def _programs(sockets: Iterable[SocketFact]) -> list[PeerFact]:
    return [peer for socket in sockets for peer in socket.peers]


def stands(sockets: tuple[SocketFact, ...]) -> bool:
    """Tell whether the other end is known not to move: its process is stopped, or its connection half closed."""
    closing = {"CLOSE-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"}
    return any(map(stands_still, _programs(sockets))) or any(socket.state in closing for socket in sockets)


def programs(facts: Facts) -> Iterator[PeerFact]:
    """Yield every program of this host that the VM depends on, as /proc told of it; it can be QEMU itself."""
    for socket in facts.sockets.value if isinstance(facts.sockets, Known) else ():
        yield from socket.peers
    for mount in facts.fuse.value if isinstance(facts.fuse, Known) else ():
        yield from mount.daemons


def about_itself(facts: Facts, peers: Iterable[PeerFact]) -> str:
    """Say that QEMU waits for an export of its own: its main loop waits, and one of these programs is itself."""
    loop = facts.main_loop
    if isinstance(loop, Unknown) or loop.value.state not in {"nested poll", "blocked in a system call"}:
        return ""
    return ", which this QEMU itself serves: it waits for itself" if any(p.pid == facts.vm.pid for p in peers) else ""


def openers_of(facts: Facts, thread: ThreadFact) -> tuple[PeerFact, ...]:
    """Return the programs that open the other end of the FIFO that a thread waits in open(2) of."""
    return tuple(peer for opening in facts.fifo_openings if opening.tid == thread.tid for peer in opening.peers)


def about_openers(peers: tuple[PeerFact, ...]) -> str:
    """Say in a clause why whoever opens the other end of a FIFO does not come to it; empty where nobody does."""
    if not peers:
        return ""
    why = "stands still" if any(map(cannot_move, peers)) else "has not come to it"
    return f": {called(peers[0])} opens its other end, and {why}"


def processes_of(facts: Facts, thread: ThreadFact) -> tuple[PeerFact, ...]:
    """Return the processes that a thread can be waiting for in the kernel: its children, or who may let its call go."""
    return tuple(peer for wait in facts.process_waits if wait.tid == thread.tid for peer in wait.peers)


def about_processes(peers: tuple[PeerFact, ...]) -> str:
    """Say in a clause which process a thread waits for, and whether it stands still; empty where none was found."""
    if not peers:
        return ""
    still = [peer for peer in peers if cannot_move(peer)]
    if len(peers) == 1 or len(still) == 1:
        return f": {called((still or peers)[0])}{', which stands still' if still else ''}"
    return f": one of {', '.join(map(called, peers[:3]))}{' and others' if len(peers) > 3 else ''}"


def peers_of(sockets: tuple[SocketFact, ...]) -> tuple[subjects.Peer, ...]:
    """Return the programs at the other end, and who of those that they ask cannot move."""
    peers = _programs(sockets)
    there, beyond = dict.fromkeys(map(subjects.peer, peers)), map(subjects.peer, asked_in_turn(peers))
    return (*tuple(there)[:3], *tuple(beyond)[:1])


def is_terminal(end: SocketFact) -> bool:
    """Tell whether an end that is shared like a pipe's is a terminal's."""
    return end.family == "pipe" and end.remote.startswith("/dev/pts/")


def about_sockets(sockets: tuple[SocketFact, ...]) -> list[Claim]:
    """Say of each socket how its queues stand, and what the program at its other end does."""
    claims = []
    for socket in sockets[:3]:
        if socket.family == "pipe":
            kind = f"an end of terminal {socket.remote}, whose other end" if is_terminal(socket) else "a pipe that"
            claims.append(
                claim(
                    f"Fd {socket.fd} is {kind} another process has{'' if is_terminal(socket) else ', too'}.",
                    socket.cite,
                )
            )
            claims += _about_peers(socket)
            continue
        queues = ""
        if socket.received_queue is not None and socket.send_queue is not None:
            queues = f"; {socket.received_queue} bytes unread by QEMU, {socket.send_queue} unread by the other end"
        taken_by = "" if socket.accepted else "; nobody has accepted it"
        words = f"Socket fd {socket.fd} to {socket.remote or 'its peer'} is in state {socket.state}{queues}{taken_by}"
        claims.append(claim(f"{words}.", socket.cite))
        claims += _about_peers(socket)
    return claims


def _about_peers(end: SocketFact) -> list[Claim]:
    claims = []
    for peer in end.peers[:2]:
        where = f", in {peer.wchan}" if peer.wchan else ""
        claims.append(claim(f"The other end is {called(peer)}, State {peer.state or 'unknown'}{where}.", peer.cite))
        claims += about_chain(peer)
    claims += [about_thread(sleeper) for sleeper in asleep(end.peers)][:2]
    return claims


ASLEEP = frozenset({"S", "D"})
AWAKE = "R"
MOSTLY_AWAKE = 0.1  # of the time between the looks
SECOND = 1e9


def ends_of(facts: Facts, thread: ThreadFact) -> tuple[SocketFact, ...]:
    """Return the sockets that a thread waits for, none where it waits for anything besides.

    QEMU's own event loops always wait for an eventfd, too: what waits for sockets alone is no event loop.
    """
    look = telling(facts, thread)
    if look is None or look.state not in ASLEEP or isinstance(facts.sockets, Unknown):
        return ()
    if look.syscall.name in PEER_CALLS:
        ends = tuple(socket for socket in facts.sockets.value if socket.fd in look.syscall.arguments[:1])
    elif look.syscall.name in POLL_CALLS:
        polled = _polled(facts, again=look is not looks(thread)[0])
        if asks_over_dbus(thread):
            wanted = set().union(
                *(polled.get(worker.tid, set()) for worker in threads(facts) if worker.comm == DBUS_WORKER)
            )
            return tuple(socket for socket in facts.sockets.value if socket.fd in wanted and socket.remote)
        wanted = polled.get(thread.tid, set())
        ends = tuple(socket for socket in facts.sockets.value if socket.fd in wanted)
        ends = ends if {socket.fd for socket in ends} == wanted else ()
    else:
        return ()
    return () if any(socket.state == "LISTEN" or socket.family == "pipe" for socket in ends) else ends


def asks_over_dbus(thread: ThreadFact) -> bool:
    """Tell whether a thread waits for an answer over D-Bus: GLib's own worker has the socket, and wakes it."""
    return any(name.startswith("g_dbus_") and name.endswith("_sync") for name in functions(thread))


def awaited(facts: Facts, thread: ThreadFact) -> tuple[subjects.Subject, ...]:
    """Return what the graph of waits knows that a thread's call is for: a condition, another program, a file."""
    look = next(iter(looks(thread)), None)
    if look is None or not look.syscall.arguments:
        return ()
    if function := condition_of(thread):
        return (subjects.Condition(look.syscall.arguments[0], function),)
    ends = ends_of(facts, thread) or socket_of(facts, thread)
    file = descriptor(facts, look.syscall.arguments[0]) if look.syscall.name in PEER_CALLS else None
    return (
        *(place_of(end) for end in ends if end.remote),
        *(subjects.peer(peer) for end in ends for peer in end.peers),
        *((subjects.File(file.target),) if file is not None and file.kind == "file" else ()),
        *map(subjects.peer, processes_of(facts, thread)),
    )


def place_of(end: SocketFact) -> subjects.File | subjects.Server:
    """Return where a connection leads: a FIFO is a file."""
    return subjects.File(end.remote) if end.family == "pipe" else subjects.Server(end.remote)


def comes_back(facts: Facts, thread: ThreadFact) -> bool:
    """Tell whether a thread that woke between the looks was at the same call again, and QEMU answered nobody meanwhile.

    libiscsi and libnfs poll with a timeout of their own, again and again. On a busy host such a thread is met awake now
    and then: that it slept nearly all the time tells it from one that works.
    """
    seen = looks(thread)
    if len(seen) < 2 or not monitor_is_dead(facts) or not blocks_main_loop(facts, (thread.tid,)):
        return False
    awake = [look for look in seen if look.state == AWAKE]
    return seen[0].syscall.is_like(seen[-1].syscall) or (len(awake) == 1 and _slept_mostly(thread))


def _slept_mostly(thread: ThreadFact) -> bool:
    if isinstance(thread.movement, Unknown):
        return False
    moved = thread.movement.value
    return (moved.cpu_ns + moved.waited_ns) / SECOND < MOSTLY_AWAKE * moved.seconds


def telling(facts: Facts, thread: ThreadFact) -> ThreadSnapshot | None:
    """Return the look that tells what a thread sleeps in: the first, and of one that was met awake then the last."""
    seen = looks(thread)
    if len(seen) > 1 and seen[0].state == AWAKE and comes_back(facts, thread):
        return seen[-1]
    return seen[0] if seen else None


@once
def _polled(facts: Facts, *, again: bool) -> dict[int, set[int]]:
    """Return the descriptors that each thread polls, by its tid: of thousands of threads each is asked about."""
    polled: dict[int, set[int]] = {}
    sets = facts.polls_again if again else facts.polls
    for poll in sets.value if isinstance(sets, Known) else ():
        polled.setdefault(poll.tid, set()).update(fd.fd for fd in poll.fds)
    return polled


def unsent(facts: Facts) -> tuple[CoroutineFact, ...]:
    """Return the requests of an export whose answer waits for room in its socket, and did not go on."""
    coroutines = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return tuple(
        coroutine
        for coroutine in coroutines
        if coroutine.park is Park.NBD_SERVER_SEND
        and not (isinstance(coroutine.stuck, Known) and not coroutine.stuck.value)
    )


def clients(facts: Facts) -> tuple[SocketFact, ...]:
    """Return the connections that QEMU took with bytes that the other end has not read."""
    return tuple(socket for socket in taken(facts) if socket.send_queue)


def taken(facts: Facts) -> tuple[SocketFact, ...]:
    """Return the connections that QEMU took, its monitor's left out."""
    sockets = facts.sockets.value if isinstance(facts.sockets, Known) else ()
    listening = {_port(socket) for socket in sockets if socket.state == "LISTEN" and socket.local != facts.vm.monitor}
    return tuple(socket for socket in sockets if socket.state == "ESTAB" and _port(socket) in listening)


def of_monitor(facts: Facts) -> tuple[SocketFact, ...]:
    """Return the connections that QEMU's monitor took."""
    sockets = facts.sockets.value if isinstance(facts.sockets, Known) else ()
    addresses = {facts.vm.monitor, *facts.vm.monitors}
    addresses |= {
        socket.local for socket in sockets if socket.state == "LISTEN" and str(socket.fd) in facts.vm.monitors
    }
    return tuple(socket for socket in sockets if socket.state == "ESTAB" and socket.local and socket.local in addresses)


def _port(socket: SocketFact) -> str:
    """Return what a listening socket and those that it took have in common: the path, or the port."""
    return socket.local if socket.family == "unix" else socket.local.rpartition(":")[2]
