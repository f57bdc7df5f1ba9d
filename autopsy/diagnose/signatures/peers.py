"""Requests that wait for another program: a server of NBD, Ceph, iSCSI or NFS, or the client of an export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.block_lines import block_lines
from autopsy.diagnose.queries.requests import (
    Standing,
    confidence,
    disk_subjects,
    disks_of,
    job_of,
    of_owners,
    passed,
    stand,
    standing,
    still,
    their_disks,
    title,
    went_on,
)
from autopsy.diagnose.queries.silence import about_silence, beyond_their_past, silence_of
from autopsy.diagnose.queries.socket_peers import (
    SILENT,
    about_itself,
    about_sockets,
    clients,
    leads_to,
    peers_of,
    stands,
    state,
    taken,
    unsent,
)
from autopsy.diagnose.queries.threads import looking_up, named
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, Facts, Park, SocketFact
from autopsy.facts.storage.requests import is_whole

NBD = frozenset({"nbd"})
CONNECTING = frozenset({Park.NBD_CONNECT})


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
                cites = tuple(request.cite for request in waiting.moving[:4])
                return RuledOut(f"requests waited for {self.words}; {went_on(waiting)}", cites)
            cites = (facts.coroutines.cite,) if isinstance(facts.coroutines, Known) else ()
            return RuledOut(f"no parked request waits for {self.words}", cites)
        disks = their_disks(facts, waiting.requests)
        jobs = job_of(facts, waiting.requests)
        whose = of_owners(facts, waiting.requests, disks)
        servers = _servers(facts, waiting.requests, self.drivers) or self._all_still(facts)
        sockets = self._sockets(facts, servers)
        # The server of a node that came while the VM ran is told by the connection alone.
        others = () if servers else tuple(dict.fromkeys(socket.remote for socket in sockets if socket.remote))
        who = ", ".join((*servers, *others)[:3]) if servers or len(others) == 1 else ""
        role = f"its {copy}'s target, " if who and (copy := _copied_by(facts, waiting.requests, who)) else ""
        number = waiting.counted()
        verb = "waits" if len(waiting.requests) == 1 else "wait"
        claims = [
            claim(
                f"{number} {whose} {verb} in the {'/'.join(sorted(self.drivers))} driver: {_places(waiting.requests)}.",
                *waiting.cites,
            )
        ]
        if waiting.proven:
            claims.append(claim("They stood at the same place in both snapshots.", *waiting.cites))
        owners = {disk.name: disk for request in waiting.requests for disk in disks_of(facts, request)}
        claims += [
            claim(f"Of disk {title(disk)} {words}.", silence.cite)
            for disk in list(owners.values())[:4]
            if (silence := silence_of(disk)) and (words := about_silence(disk))
        ]
        # QEMU itself says that it has no connection; of one that is silent, or may yet be accepted, it says nothing.
        unconnected = bool(self.only_with) and all(socket.accepted for socket in sockets)
        dead = unconnected or (stands(sockets) and bool(servers)) or beyond_their_past(owners.values())
        # One that was accepted is served by whatever its export waits for.
        itself = about_itself(facts, (peer for socket in sockets if not socket.accepted for peer in socket.peers))
        claims += about_sockets(sockets)
        server = f"{self.words} {who}" if who else self.words
        return Match(
            headline=f"{number} {whose} {verb} for {role}{server}{itself or _state(facts, waiting, sockets)}",
            objects=(*disks, *jobs, *map(subjects.Server, servers or ((who,) if who else ())), *peers_of(sockets)),
            confidence=confidence(proven=waiting.proven and (dead or bool(itself))),
            claims=tuple(claims),
            stands=stand(self.parks, waiting.requests, self._ends(facts)),
            weight=len(waiting.requests),
        )

    def _all_still(self, facts: Facts) -> tuple[str, ...]:
        """Return every server of such a driver where none moves: whichever of them it is, it does not answer."""
        servers = dict.fromkeys(node.server for node in facts.nodes if node.server and node.driver in self.drivers)
        still = all((ends := self._sockets(facts, (server,))) and stands(ends) for server in servers)
        return tuple(servers) if still else ()

    def _ends(self, facts: Facts) -> tuple[subjects.Subject, ...]:
        """Return every server of such a driver, and its program: which of several it is, may not be known."""
        servers = tuple(
            dict.fromkeys(node.server for node in facts.nodes if node.server and node.driver in self.drivers)
        )
        return (*map(subjects.Server, servers), *peers_of(self._sockets(facts, servers)))

    def _standing(self, facts: Facts) -> Standing | Unknown:
        waiting = standing(facts, self.parks)
        if isinstance(waiting, Unknown) or not (self.only_with or self.not_with):
            return waiting
        others = disk_subjects(facts, still(facts, *(self.only_with | self.not_with)))
        wanted = bool(self.only_with)
        mine = waiting.requests
        if others:
            mine = tuple(request for request in mine if bool(disk_subjects(facts, (request,)) & others) is wanted)
        if self.only_with and not others:
            mine = tuple(request for request in waiting.requests if request.park in self.only_with)
        if self.not_with and not others and still(facts, *self.not_with):
            mine = ()
        return Standing(mine, waiting.moving, waiting.proven, waiting.whole)

    def _sockets(self, facts: Facts, servers: tuple[str, ...]) -> tuple[SocketFact, ...]:
        """Return the sockets that lead to the server: by the address of the node, else by the port."""
        if isinstance(facts.sockets, Unknown):
            return ()
        connected = [
            socket
            for socket in facts.sockets.value
            if socket.state not in {"LISTEN", "UNCONN"} and socket.family != "pipe"
        ]
        leading = tuple(
            socket
            for socket in connected
            if socket.remote and any(leads_to(socket.remote, server) for server in servers)
        )
        leading = leading or tuple(socket for socket in connected if socket.remote.endswith(self.ports) and self.ports)
        return leading or (() if servers else self._only_one(facts, connected))

    def _only_one(self, facts: Facts, connected: list[SocketFact]) -> tuple[SocketFact, ...]:
        """Return the only connection that QEMU has made, where no node tells of a server: it may be the one."""
        came = {socket.fd for socket in taken(facts)}
        made = tuple(
            socket
            for socket in connected
            if socket.remote and socket.fd not in came and (not socket.local or socket.local != facts.vm.monitor)
        )
        return made if len(made) == 1 and self.drivers == NBD else ()


def _state(facts: Facts, waiting: Standing, sockets: tuple[SocketFact, ...]) -> str:
    """Say what is seen of a server; one that answered others meanwhile is not silent, and has forgotten these."""
    words = state(sockets)
    if (
        not sockets
        and (resolver := looking_up(facts))
        and any(request.park in CONNECTING for request in waiting.requests)
    ):
        return f": {named(resolver)} asks a name server for its address, and has no answer"
    forgotten = all(passed(facts, request) for request in waiting.requests)
    return ": others such as these were answered meanwhile" if forgotten and words == SILENT else words


def _copied_by(facts: Facts, requests: Sequence[CoroutineFact], server: str) -> str:
    """Return what writes to this server before the disks' own writes end: a backup, a mirror, or nothing."""
    if all(request.by_mirror for request in requests):
        return "mirror"
    disks = {disk.name: disk for request in requests for disk in disks_of(facts, request)}
    branches = (branch for disk in disks.values() for branch in block_lines(disk).branches)
    at_server = (branch for branch in branches if any(node.server == server for node in branch.nodes))
    return "backup" if any(branch.of_backup for branch in at_server) else ""


def _places(requests: tuple[CoroutineFact, ...]) -> str:
    return ", ".join(sorted({request.park.words for request in requests}))


def _servers(facts: Facts, requests: Iterable[CoroutineFact], drivers: frozenset[str]) -> tuple[str, ...]:
    """Return who should answer: by the nodes of the requests' disks, else the only one that it can be."""
    disks = [disk for request in requests for disk in disks_of(facts, request)]
    nodes = [node for disk in disks for node in disk.nodes]
    sure = bool(nodes) and all(map(is_whole, disks))
    if not nodes:
        nodes = list(facts.nodes)
    elif not sure:
        # What hangs below a branch that was not told is among the nodes that hang below no disk.
        every = facts.disks.value if isinstance(facts.disks, Known) else ()
        below = {node.name for disk in every for node in disk.nodes}
        nodes += [node for node in facts.nodes if node.name not in below]
    servers = tuple(dict.fromkeys(node.server for node in nodes if node.server and node.driver in drivers))
    return servers if sure or len(servers) == 1 else ()


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


def _export_client(facts: Facts) -> Judgement:
    if isinstance(facts.coroutines, Unknown):
        return CannotTell(f"the parked coroutines: {missing(facts.coroutines)}")
    waiting = unsent(facts)
    if not waiting:
        return RuledOut("no answer to an export's client waits to be sent", (facts.coroutines.cite,))
    cites = tuple(answer.cite for answer in waiting[:4])
    if isinstance(facts.main_loop, Unknown) or facts.main_loop.value.state == "unknown":
        return CannotTell("whether a drain waits for an export's client (evidence/gdb.threads/main-loop.json)")
    loop = facts.main_loop.value
    alive = facts.monitor.alive
    if loop.state != "nested poll" or (isinstance(alive, Known) and alive.value):
        return RuledOut("an export's client has not taken its answer, and nothing of the VM waits for that", cites)
    if isinstance(facts.sockets, Unknown):
        return CannotTell(f"which client has not taken its answer: {missing(facts.sockets)}")
    sockets = clients(facts)
    stood = all(isinstance(answer.stuck, Known) for answer in waiting)
    answers = count(len(waiting), "answer")
    return Match(
        headline=f"A drain waits for a client of an export that does not take what it asked for{state(sockets)}",
        objects=peers_of(sockets),
        confidence=confidence(
            proven=stood and stands(sockets) and len(sockets) == 1, otherwise="likely" if sockets else "possible"
        ),
        claims=(
            claim(f"{answers} of QEMU's NBD server wait for room in the client's socket.", *cites),
            claim(f"The main thread waits inside {loop.under or 'a drain'} until they are sent.", loop.cite),
            *about_sockets(sockets),
        ),
        weight=len(waiting),
    )


SIGNATURES = (
    *(Signature(service.id, "peer", service.title, service.judge) for service in SERVICES),
    Signature("export-client-unread", "peer", "an export's client does not take its answer", _export_client),
)
