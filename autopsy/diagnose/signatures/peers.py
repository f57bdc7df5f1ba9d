"""Requests that wait for another program: an NBD server, Ceph, iSCSI, a userspace NFS client, a vhost-user back end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.judgement import MAIN_LOOP, REQUESTS, CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.diagnose.seen import (
    Standing,
    blocks_main_loop,
    confidence,
    count,
    disk_names,
    disk_tokens,
    disks_of,
    functions,
    looks,
    missing,
    named,
    of_disks,
    same_sleep,
    standing,
    still,
    threads,
)
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model import CoroutineFact, Facts, Park, Peer, SocketFact, Thread
from autopsy.facts.syscalls import PEER_CALLS


@dataclass(frozen=True, slots=True)
class Service:
    """One kind of server that a block driver waits for; `ports` are where its TCP servers listen.

    A disk with requests at one of `not_with` is another signature's; with `only_with` all of its requests are ours.
    """

    id: str
    title: str
    words: str
    parks: frozenset[Park]
    drivers: frozenset[str]
    ports: tuple[str, ...] = ()
    only_with: frozenset[Park] = frozenset()
    not_with: frozenset[Park] = frozenset()

    def judge(self, facts: Facts) -> Judgement:
        """Judge by the coroutines that wait in this driver; the sockets say what state the server is in."""
        waiting = self._standing(facts)
        if isinstance(waiting, Unknown):
            return CannotTell(f"the parked coroutines: {missing(waiting)}")
        if not waiting.requests:
            if waiting.moving:
                cites = tuple(each.cite for each in waiting.moving[:4])
                return RuledOut(f"requests waited for {self.words}, and went on", cites)
            cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
            return RuledOut(f"no parked request waits for {self.words}", cites)
        disks = disk_names(facts, waiting.requests)
        sockets = self._sockets(facts, waiting.requests)
        who, state = _server(facts, waiting.requests, self.drivers), _state(sockets)
        number = count(len(waiting.requests), "request")
        verb = "waits" if len(waiting.requests) == 1 else "wait"
        claims = [
            claim(
                f"{number} {of_disks(disks)} {verb} in the {'/'.join(sorted(self.drivers))} driver: "
                f"{_places(waiting.requests)}.",
                *waiting.cites,
            )
        ]
        if waiting.proven:
            claims.append(claim("They stood at the same place in both exposures: no reply came.", *waiting.cites))
        claims += _about_sockets(sockets)
        return Match(
            headline=f"{number} {of_disks(disks)} {verb} for {self.words}{f' {who}' if who else ''}{state}",
            objects=(*disks, *((who,) if who else ()), *_peer_objects(sockets)),
            confidence=confidence(proven=waiting.proven),
            claims=tuple(claims),
            holds=frozenset({REQUESTS}) | disk_tokens(facts, waiting.requests),
            weight=len(waiting.requests),
        )

    def _standing(self, facts: Facts) -> Standing | Unknown:
        waiting = standing(facts, self.parks)
        if isinstance(waiting, Unknown) or not (self.only_with or self.not_with):
            return waiting
        others = disk_tokens(facts, still(facts, *(self.only_with | self.not_with)))
        wanted = bool(self.only_with)
        mine = tuple(each for each in waiting.requests if bool(disk_tokens(facts, (each,)) & others) is wanted)
        if self.only_with and not others:
            mine = tuple(each for each in waiting.requests if each.park in self.only_with)
        if self.not_with and not others and still(facts, *self.not_with):
            mine = ()
        return Standing(mine, waiting.moving, waiting.proven)

    def _sockets(self, facts: Facts, requests: Iterable[CoroutineFact]) -> tuple[SocketFact, ...]:
        """Return the sockets that lead to the server: by the address of the node, else by the port."""
        if isinstance(facts.sockets, Unknown):
            return ()
        servers = {
            node.server
            for request in requests
            for disk in disks_of(facts, request)
            for node in disk.nodes
            if node.server and node.driver in self.drivers
        }
        connected = [each for each in facts.sockets.value if each.state not in {"LISTEN", "UNCONN"}]
        found = tuple(
            each for each in connected if each.remote and any(_leads_to(each.remote, server) for server in servers)
        )
        return found or tuple(each for each in connected if each.remote.endswith(self.ports) and self.ports)


def _leads_to(remote: str, server: str) -> bool:
    port = server.rpartition(":")[2].split("/")[0]
    if remote.startswith(("/", "@")):
        return remote in server
    return bool(port) and port.isdecimal() and remote.endswith(f":{port}")


def _places(requests: tuple[CoroutineFact, ...]) -> str:
    return ", ".join(sorted({each.park.value for each in requests}))


def _server(facts: Facts, requests: Iterable[CoroutineFact], drivers: frozenset[str]) -> str:
    for request in requests:
        for disk in disks_of(facts, request):
            for node in disk.nodes:
                if node.server and node.driver in drivers:
                    return node.server
    return ""


def _state(sockets: tuple[SocketFact, ...]) -> str:
    peers = [peer for each in sockets for peer in each.peers]
    if stopped := next((peer for peer in peers if peer.state in {"T", "t"}), None):
        return f": its process {stopped.pid} ({stopped.comm}) is stopped"
    if stuck := next((peer for peer in peers if peer.state == "D"), None):
        return (
            f": its process {stuck.pid} ({stuck.comm}) sleeps in the kernel (State D, {stuck.wchan or 'wchan unknown'})"
        )
    if gone := next((each for each in sockets if each.state in {"CLOSE-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"}), None):
        return f": the connection is half closed ({gone.state})"
    if opening := next((each for each in sockets if each.state == "SYN-SENT"), None):
        return f": {opening.remote} does not accept the connection"
    return ": it is connected, and silent" if sockets else ""


def _peer_objects(sockets: tuple[SocketFact, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_called(peer) for each in sockets for peer in each.peers))[:3]


def _called(peer: Peer) -> str:
    return f"{peer.comm or 'process'} {peer.pid}"


def _about_sockets(sockets: tuple[SocketFact, ...]) -> list[Claim]:
    claims = []
    for each in sockets[:3]:
        queues = ""
        if each.received_queue is not None and each.send_queue is not None:
            queues = f"; {each.received_queue} bytes unread by QEMU, {each.send_queue} unread by the other end"
        claims.append(
            claim(f"Socket fd {each.fd} to {each.remote or 'its peer'} is in state {each.state}{queues}.", each.cite)
        )
        for peer in each.peers[:2]:
            where = f", in {peer.wchan}" if peer.wchan else ""
            claims.append(
                claim(f"The other end is {_called(peer)}, State {peer.state or 'unknown'}{where}.", peer.cite)
            )
    return claims


SERVICES = (
    Service(
        "nbd-silent",
        "an NBD server does not answer",
        "the NBD server",
        frozenset({Park.NBD_REPLY, Park.NBD_SEND, Park.NBD_SLOT}),
        frozenset({"nbd"}),
        (":10809",),
        not_with=frozenset({Park.NBD_CONNECT}),
    ),
    Service(
        "nbd-reconnecting",
        "QEMU tries to reach an NBD server again",
        "a new connection to the NBD server",
        frozenset({Park.NBD_CONNECT, Park.NBD_REPLY, Park.NBD_SEND, Park.NBD_SLOT}),
        frozenset({"nbd"}),
        (":10809",),
        only_with=frozenset({Park.NBD_CONNECT}),
    ),
    Service(
        "rbd-silent",
        "a Ceph cluster does not answer librbd",
        "librbd",
        frozenset({Park.RBD}),
        frozenset({"rbd"}),
        (":6789", ":3300", ":6800"),
    ),
    Service(
        "iscsi-silent",
        "an iSCSI target does not answer",
        "the iSCSI target",
        frozenset({Park.ISCSI}),
        frozenset({"iscsi"}),
        (":3260",),
    ),
    Service(
        "libnfs-silent",
        "an NFS server does not answer libnfs",
        "the NFS server",
        frozenset({Park.NFS}),
        frozenset({"nfs"}),
        (":2049",),
    ),
    Service(
        "remote-image-silent",
        "a server that an image is read from does not answer",
        "the remote server",
        frozenset({Park.CURL, Park.SSH, Park.GLUSTER, Park.BLKIO, Park.NVME}),
        frozenset({"http", "https", "ftp", "ftps", "ssh", "gluster", "nvme", "nvme-io_uring", "virtio-blk-vfio-pci"}),
        (":80", ":443", ":22", ":24007"),
    ),
)


@dataclass(frozen=True, slots=True)
class Talk:
    """One kind of question that QEMU puts to a helper program and waits for, holding the BQL."""

    id: str
    title: str
    words: str
    frames: tuple[str, ...]

    def judge(self, facts: Facts) -> Judgement:
        """Judge by a thread that is in a socket call under this helper's functions."""
        candidates = [each for each in threads(facts) if self._frames_of(each)]
        if isinstance(facts.threads, Unknown):
            return CannotTell("the threads (evidence/witness/tasks.txt)")
        if not candidates:
            if all(isinstance(each.frames, Unknown) for each in threads(facts)):
                return CannotTell("the threads' frames (evidence/gdb.threads/threads.json)")
            return RuledOut(f"no thread is in a conversation with {self.words}", (facts.threads.cite,))
        waiting = [each for each in candidates if any(look.syscall.name in PEER_CALLS for look in looks(each)[:1])]
        silent = [each for each in waiting if _through(each) is not False]
        if not silent:
            return RuledOut(f"the conversation with {self.words} goes on", (facts.threads.cite,))
        return self._match(facts, silent)

    def _match(self, facts: Facts, silent: list[Thread]) -> Match:
        proven = any(_through(each) for each in silent)
        sockets = tuple(socket for each in silent for socket in _socket_of(facts, each))
        held = frozenset({MAIN_LOOP}) if blocks_main_loop(facts, (each.tid for each in silent)) else frozenset()
        frames = [each.frames.cite for each in silent if isinstance(each.frames, Known)]
        claims = [
            claim(
                f"{named(each)} waits in {looks(each)[0].syscall.name} under {self._frames_of(each)[0]}.",
                looks(each)[0].cite,
                *frames[:2],
            )
            for each in silent[:3]
        ]
        return Match(
            headline=f"{named(silent[0])} waits for {self.words}{_state(sockets)}",
            objects=(*_peer_objects(sockets), *(named(each) for each in silent[:3])),
            confidence=confidence(proven=proven),
            claims=(*claims, *_about_sockets(sockets)),
            holds=held | {REQUESTS} | {f"thread {each.tid}" for each in silent},
            weight=len(silent),
        )

    def _frames_of(self, thread: Thread) -> list[str]:
        return [name for name in functions(thread) if name.startswith(self.frames)]


def _through(thread: Thread) -> bool | None:
    same = same_sleep(thread)
    return same.value if isinstance(same, Known) else None


def _socket_of(facts: Facts, thread: Thread) -> tuple[SocketFact, ...]:
    arguments = looks(thread)[0].syscall.arguments
    if isinstance(facts.sockets, Unknown) or not arguments:
        return ()
    return tuple(each for each in facts.sockets.value if each.fd == arguments[0])


TALKS = (
    Talk(
        "vhost-user-silent",
        "a vhost-user back end does not answer",
        "a vhost-user back end",
        ("vhost_user_", "process_message_reply"),
    ),
    Talk("swtpm-silent", "the software TPM does not answer", "the software TPM", ("tpm_emulator_", "tpm_util_")),
)

SIGNATURES = (
    *(Signature(service.id, "peer", service.title, service.judge) for service in SERVICES),
    *(Signature(talk.id, "peer", talk.title, talk.judge) for talk in TALKS),
)
