"""A disk's requests from the guest down to whoever must answer them, with the place where they are stuck."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import DiskPath, Hop, Where
from autopsy.diagnose.queries.requests import called, disks_of, title
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, Park
from autopsy.facts.model.yield_points import DISK_PARKS, SERVED, THROTTLED, Layer, at
from autopsy.facts.storage.nodes import LOCAL
from autopsy.facts.subjects import Subject

ENGINE = at(Layer.ENGINE)
ENGINES = {"threads": "worker threads", "native": "Linux AIO", "io_uring": "io_uring"}
REQUESTS = DISK_PARKS | {Park.SLEEP, Park.PVE_BACKUP}
MOST_PATHS = 64


def paths(facts: Facts, where: Where, objects: frozenset[Subject]) -> tuple[DiskPath, ...]:
    """Return a path for each disk, those that the diagnosis names first."""
    if isinstance(facts.disks, Unknown):
        return ()
    requests: dict[str, list[CoroutineFact]] = {}
    for coroutine in facts.coroutines.value if isinstance(facts.coroutines, Known) else ():
        owners = disks_of(facts, coroutine)
        if len(owners) == 1 and coroutine.park in REQUESTS:
            requests.setdefault(owners[0].name, []).append(coroutine)
    drawn = [
        _path(disk, requests.get(disk.name, []), where, touched=subjects.disk(disk) in objects)
        for disk in facts.disks.value
        if disk.inserted
    ]
    drawn.sort(key=lambda path: (path.stuck_at is None, path.completed or 0))
    return tuple(drawn[:MOST_PATHS])


def _path(disk: DiskFact, requests: list[CoroutineFact], where: Where, *, touched: bool) -> DiskPath:
    hops = [
        Hop(kind="guest", name="client" if disk.is_export else "guest", stuck=touched and where == "guest"),
        Hop(
            kind="device",
            name=disk.model.value if isinstance(disk.model, Known) else "device",
            detail=title(disk) + _thread(disk),
            in_flight=disk.in_flight.value if isinstance(disk.in_flight, Known) else None,
            stuck=touched and where == "device",
            cites=(disk.in_flight.cite,) if isinstance(disk.in_flight, Known) else (disk.cite,),
        ),
    ]
    if group := disk.throttle_group.value if isinstance(disk.throttle_group, Known) else "":
        hops.append(_hop("throttle", group, _limits(disk), requests, THROTTLED, stuck=touched and where == "throttle"))
    below = REQUESTS - THROTTLED - ENGINE - SERVED
    for index, node in enumerate(disk.nodes):
        mine = below if index == 0 else frozenset[Park]()
        detail = node.filename if not node.filename.startswith("json:") else ""
        hops.append(
            _hop(
                "node",
                node.name,
                f"{node.driver} {detail}".strip(),
                requests,
                mine,
                stuck=touched and where == "block" and not index,
            )
        )
    hops += _ends(disk, requests, where, touched=touched)
    stuck = next((index for index, hop in enumerate(hops) if hop.stuck), None)
    completed = disk.completed.value if isinstance(disk.completed, Known) else None
    return DiskPath(
        disk=title(disk),
        hops=tuple(hops),
        stuck_at=stuck,
        completed=completed,
        sentence=_sentence(disk, completed, hops, stuck),
    )


def _ends(disk: DiskFact, requests: list[CoroutineFact], where: Where, *, touched: bool) -> list[Hop]:
    """Return the last hops: the engine and the host for a local file, the server for a remote one."""
    hops = []
    for node in disk.nodes:
        if node.driver in LOCAL:
            engine = ENGINES.get(node.aio, node.aio or "AIO")
            hops.append(_hop("aio", engine, "", requests, ENGINE, stuck=touched and where == "aio"))
            hops.append(Hop(kind="host", name="host", detail=node.filename, stuck=touched and where == "host"))
            if touched and where == "peer":
                hops.append(Hop(kind="peer", name="server", detail="behind the host's file system", stuck=True))
            return hops
        if node.server:
            hops.append(_hop("peer", node.server, node.driver, requests, SERVED, stuck=touched and where == "peer"))
            return hops
    return hops


def _hop(
    kind: str, name: str, detail: str, requests: list[CoroutineFact], parks: frozenset[Park], *, stuck: bool
) -> Hop:
    here = [each for each in requests if each.park in parks]
    cites: tuple[Cite, ...] = tuple(each.cite for each in here[:4])
    return Hop(kind=kind, name=name, detail=detail, in_flight=len(here) or None, stuck=stuck, cites=cites)  # type: ignore[arg-type]  # a literal of ours


def _thread(disk: DiskFact) -> str:
    if isinstance(disk.iothread, Unknown):
        return ""
    return f", iothread {disk.iothread.value}" if disk.iothread.value else ", no iothread"


def _limits(disk: DiskFact) -> str:
    if isinstance(disk.limits, Unknown):
        return ""
    return ", ".join(f"{name} {value}" for name, value in disk.limits.value.values)


def _sentence(disk: DiskFact, completed: int | None, hops: list[Hop], stuck: int | None) -> str:
    did = "" if completed is None else f" It completed {completed} requests between the two snapshots."
    if stuck is None:
        return f"Nothing of {called(disk)} is known to be stuck.{did}"
    return f"The requests of {called(disk)} are stuck at {hops[stuck].name} ({hops[stuck].kind}).{did}"
