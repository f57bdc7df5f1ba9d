"""Edges of parked requests: to the throttle group, the server, or the worker threads and the kernel that have them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from autopsy.bundle.syscalls import REQUEST_CALLS
from autopsy.diagnose.queries.below import layers_of, stands_below
from autopsy.diagnose.queries.engines import held_loops, owed_by_loops
from autopsy.diagnose.queries.kernel_sleepers import Sleeper, device_of, image_of, sleepers
from autopsy.diagnose.queries.limits.at_limits import copies_held
from autopsy.diagnose.queries.limits.throttle_locks import throttle_lock
from autopsy.diagnose.queries.peers.programs import on_to_still
from autopsy.diagnose.queries.requests import disks_of, last_driver, parked_still
from autopsy.diagnose.queries.socket_peers import clients, leads_to, programs, unsent
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Park, Role
from autopsy.facts.model.yield_points import BEHIND, BY_ENGINE, DISK_PARKS, THROTTLED
from autopsy.facts.subjects import Subject


def request_waits(facts: Facts) -> Iterator[Wait]:
    """Yield what each request that stands is parked at; one that goes on waits for nobody for long."""
    asleep = sleepers(facts)
    workers = [subjects.thread(sleeper.thread) for sleeper in asleep if _works(sleeper)]
    yielded: set[tuple[subjects.Place, Certainty]] = set()
    places: dict[tuple[Park, tuple[int, ...]], tuple[subjects.Place, tuple[Subject, ...]]] = {}
    for request in standing(facts, DISK_PARKS - BEHIND):
        if request.park is Park.DRIVER and last_driver(facts, request) is None:
            continue  # it may stand behind any other
        sure = Certainty.SEEN if isinstance(request.stuck, Known) and request.stuck.value else Certainty.ONCE
        owners = disks_of(facts, request)
        kind = (request.park, tuple(map(id, owners)))
        if kind not in places:
            ends = tuple(_ends(facts, request, owners, workers))
            places[kind] = (subjects.Place(request.park, frozenset(ends)), ends)
            for layer in layers_of(facts, (end for end in ends if isinstance(end, subjects.HostDevice))):
                below = subjects.file_system(layer.mount)
                yield Wait(subjects.HostDevice(layer.loop), below, How.STACKED_ON, Certainty.ONCE, (layer.cite,))
        place, ends = places[kind]
        yield Wait(subjects.Request(request.address), place, How.PARKED_AT, sure, (request.cite,))
        if (place, sure) not in yielded:  # what hundreds of requests stand at is for the same
            yielded.add((place, sure))
            for on in ends:
                yield Wait(place, on, How.FOR, sure, (request.cite,))
            yield from _throttle_lock(facts, request, ends or (place,))
    yield from _servers(facts)
    yield from _servers_of_servers(facts)
    yield from _clients(facts)


def _throttle_lock(facts: Facts, request: CoroutineFact, limits: tuple[Subject, ...]) -> Iterator[Wait]:
    """Yield that a throttle group, or the place where nobody knows its groups, waits for the group's own mutex."""
    lock = throttle_lock(facts) if request.park in THROTTLED else None
    for limit in limits if lock is not None else ():
        if lock is not None and not (isinstance(limit, subjects.ThrottleGroup) and lock.group not in {"", limit.name}):
            cites = (lock.mutex.cite, request.cite)
            yield Wait(limit, subjects.lock(lock.mutex), How.WAITS_FOR_LOCK, Certainty.ONCE, cites)


def _works(sleeper: Sleeper) -> bool:
    """Tell whether a thread does requests' work; without debug-threads=on the workers have no name of their own."""
    role = sleeper.thread.role
    return role in {Role.WORKER, Role.KERNEL} or (
        role is Role.OTHER and sleeper.look.syscall.name in REQUEST_CALLS and sleeper.family.only_requests
    )


def standing(facts: Facts, parks: frozenset[Park]) -> Iterator[CoroutineFact]:
    """Yield the requests at these places that nothing shows to go on, or to be a job's that only a limit holds back."""
    copies = frozenset(copy.address for copy in copies_held(facts))
    yield from (request for request in parked_still(facts, parks) if request.address not in copies)


def _ends(
    facts: Facts, request: CoroutineFact, owners: tuple[DiskFact, ...], workers: list[subjects.Thread]
) -> Iterator[Subject]:
    if request.park in THROTTLED:
        groups = {group for disk in owners for group in disk.on_its_way}
        yield from map(subjects.ThrottleGroup, sorted(groups))
    elif request.park in BY_ENGINE:
        owed = held_loops(facts) if request.park in owed_by_loops(facts) else ()
        yield from map(subjects.thread, owed) if owed else workers or loops_below(facts, owners)
    elif request.park is Park.BLKDEBUG:
        yield from (_drivers(owners, request.park))
    else:
        nodes = [node for disk in owners for node in disk.nodes] or list(facts.nodes)
        wanted = request.park.drivers
        servers = dict.fromkeys(node.server for node in nodes if node.server and node.driver in wanted)
        yield from map(subjects.Server, servers)


def loops_below(facts: Facts, owners: tuple[DiskFact, ...]) -> Iterator[subjects.HostDevice]:
    """Yield the loop devices that these disks are, where the file system below holds their requests."""
    devices = [device for disk in owners if (device := device_of(facts, image_of(facts, disk))) is not None]
    for layer in layers_of(facts, devices):
        if stands_below(facts, layer):
            yield subjects.HostDevice(layer.loop)


def _drivers(owners: tuple[DiskFact, ...], park: Park) -> Iterator[Subject]:
    for disk in owners:
        for node in disk.nodes:
            if node.driver in park.drivers:
                yield subjects.Driver(node.name, node.driver)


def _servers(facts: Facts) -> Iterator[Wait]:
    """Yield who is at the other end of the connection to each server."""
    sockets = facts.sockets.value if isinstance(facts.sockets, Known) else ()
    for server in dict.fromkeys(node.server for node in facts.nodes if node.server):
        for socket in sockets:
            if socket.state not in {"LISTEN", "UNCONN"} and socket.remote and leads_to(socket.remote, server):
                for peer in socket.peers:
                    yield Wait(
                        subjects.Server(server), subjects.peer(peer), How.SERVED_BY, Certainty.ONCE, (socket.cite,)
                    )


def _servers_of_servers(facts: Facts) -> Iterator[Wait]:
    """Yield the way from a program that the VM asks to one that cannot move, by what each asks in turn."""
    for peer in programs(facts):
        for asks, asked in pairwise(on_to_still(peer)):
            waiter, server = subjects.peer(asks), subjects.peer(asked)
            yield Wait(waiter, server, How.CLIENT_OF, Certainty.ONCE, (asks.cite, asked.cite))


def _clients(facts: Facts) -> Iterator[Wait]:
    """Yield which client should take the answers that QEMU's own NBD server sends, where only one can be meant."""
    ends = clients(facts)
    for request in unsent(facts) if len(ends) == 1 else ():
        sure = Certainty.SEEN if isinstance(request.stuck, Known) else Certainty.ONCE
        for peer in ends[0].peers:
            yield Wait(
                subjects.Request(request.address),
                subjects.peer(peer),
                How.PARKED_AT,
                sure,
                (request.cite, ends[0].cite),
            )
