"""A disk's requests from the guest down to whoever must answer them, with the place where they are stuck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.block_lines import BlockLines, Branch, block_lines
from autopsy.diagnose.diagnosis import DiskPath, Hop, PathBranch, Where
from autopsy.diagnose.queries.requests import called, disks_of, title
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, Facts, JobFact, Node, Park
from autopsy.facts.model.yield_points import DISK_PARKS, SERVED, THROTTLED, Layer, at
from autopsy.facts.storage.nodes import LOCAL
from autopsy.facts.subjects import Subject

ENGINE = at(Layer.ENGINE)
ENGINES = {"threads": "worker threads", "native": "Linux AIO", "io_uring": "io_uring"}
REQUESTS = DISK_PARKS | {Park.SLEEP, Park.PVE_BACKUP}
BELOW = REQUESTS - THROTTLED - ENGINE - SERVED
NOWHERE: frozenset[Park] = frozenset()
MOST_PATHS = 64


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where the verdict says that a disk's requests end: the kind of place, and which server or file, if it is told.

    `where` is None for a disk that the verdict does not name.
    """

    where: Where | None
    servers: frozenset[str]
    files: tuple[str, ...]

    def at_server(self, node: Node, lines: BlockLines) -> bool:
        """Tell whether this server does not answer: the one that is named, or the only one."""
        if self.where != "peer":
            return False
        others = [member.server for line in lines.every for member in line if member.server]
        return node.server in self.servers or (not self.servers & set(others) and len(others) == 1)

    def at_file(self, node: Node, lines: BlockLines) -> bool:
        """Tell whether the requests end at this local file, or what is below it."""
        local = [member for line in lines.every for member in line if member.driver in LOCAL]
        if len(local) == 1:
            return True
        names = (node.filename, node.opened)
        return any(name == file or name.startswith(f"{file.rstrip('/')}/") for file in self.files for name in names)


def paths(facts: Facts, where: Where, objects: frozenset[Subject]) -> tuple[DiskPath, ...]:
    """Return a path for each disk and each job that the diagnosis names, the stuck ones first."""
    if isinstance(facts.disks, Unknown):
        return ()
    requests: dict[str, list[CoroutineFact]] = {}
    for coroutine in facts.coroutines.value if isinstance(facts.coroutines, Known) else ():
        owners = disks_of(facts, coroutine)
        if len(owners) == 1 and coroutine.park in REQUESTS:
            requests.setdefault(owners[0].name, []).append(coroutine)
    servers = frozenset(server.address for server in objects if isinstance(server, subjects.Server))
    files = tuple(file.path for file in objects if isinstance(file, subjects.File | subjects.FileSystem))
    drawn = [
        _path(
            disk,
            requests.get(disk.name, []),
            _Ends(where if subjects.disk(disk) in objects else None, servers, files),
            [node for node in facts.nodes if node.server in servers],
        )
        for disk in facts.disks.value
        if disk.inserted
    ]
    drawn.sort(key=lambda path: (not path.is_stuck, path.completed or 0))
    jobs = facts.jobs.value if isinstance(facts.jobs, Known) else ()
    named = [job for job in jobs if subjects.Job(job.id) in objects]
    return (*(_path_of_job(facts, job, where, sorted(servers)) for job in named), *drawn)[:MOST_PATHS]


def _path_of_job(facts: Facts, job: JobFact, where: Where, servers: Sequence[str]) -> DiskPath:
    """Return the path of a job's own requests: from the job to the server that it waits for, as far as that is told."""
    done = f"{job.kind}, {job.status}, {job.current:,} of {job.total:,} bytes"
    waiting = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    at_server = [coroutine for coroutine in waiting if coroutine.park in SERVED and where == "peer"]
    hops = [Hop(kind="job", name=job.id, detail=done, stuck=where == "job", cites=(job.cite,))]
    for server in servers[:1] if where == "peer" else ():
        nodes = [node for node in facts.nodes if node.server == server]
        hops += [Hop(kind="node", name=node.name, detail=node.driver, cites=(node.cite,)) for node in nodes[:1]]
        cites = tuple(coroutine.cite for coroutine in at_server[:4])
        hops.append(Hop(kind="peer", name=server, in_flight=len(at_server) or None, stuck=True, cites=cites))
    stuck = next((index for index, hop in enumerate(hops) if hop.stuck), None)
    end = f"stuck at {hops[stuck].name} ({hops[stuck].kind})" if stuck is not None else "not seen to be stuck"
    return DiskPath(
        disk=job.id, owner="job", hops=tuple(hops), stuck_at=stuck, sentence=f"The requests of job {job.id} are {end}."
    )


def _path(disk: DiskFact, requests: list[CoroutineFact], ends: _Ends, served: Sequence[Node]) -> DiskPath:
    lines = block_lines(disk)
    if any(request.by_mirror for request in requests):  # its target is no node of the disk's
        targets = (Branch(0, "target of the mirror", (node,)) for node in served[:1])
        lines = BlockLines(lines.trunk, (*lines.branches, *targets))
    hops = [*_above(disk, requests, ends.where)]
    first = len(hops)
    hops += _line(lines.trunk, lines, requests, ends, top=True)
    branches = tuple(
        _branch(first + branch.at, branch.words, tuple(_line(branch.nodes, lines, requests, ends, top=False)))
        for branch in lines.branches
    )
    stuck = next((index for index, hop in enumerate(hops) if hop.stuck), None)
    completed = disk.completed.value if isinstance(disk.completed, Known) else None
    at_branch = (branch.hops[branch.stuck_at] for branch in branches if branch.stuck_at is not None)
    end = hops[stuck] if stuck is not None else next(at_branch, None)
    return DiskPath(
        disk=title(disk),
        hops=tuple(hops),
        branches=branches,
        stuck_at=stuck,
        completed=completed,
        sentence=_sentence(disk, completed, end),
    )


def _branch(place: int, words: str, hops: tuple[Hop, ...]) -> PathBranch:
    stuck = next((index for index, hop in enumerate(hops) if hop.stuck), None)
    return PathBranch(at=place, words=words, hops=hops, stuck_at=stuck)


def _above(disk: DiskFact, requests: list[CoroutineFact], where: Where | None) -> Iterator[Hop]:
    """Yield what lies above the block nodes: the guest, the device, the disk's own limits."""
    yield Hop(kind="guest", name="client" if disk.is_export else "guest", stuck=where == "guest")
    yield Hop(
        kind="device",
        name=disk.model.value if isinstance(disk.model, Known) else "device",
        detail=title(disk) + _thread(disk),
        in_flight=disk.in_flight.value if isinstance(disk.in_flight, Known) else None,
        stuck=where == "device",
        cites=(disk.in_flight.cite,) if isinstance(disk.in_flight, Known) else (disk.cite,),
    )
    if group := disk.throttle_group.value if isinstance(disk.throttle_group, Known) else "":
        yield _hop("throttle", group, _limits(disk), requests, THROTTLED, stuck=where == "throttle")


def _line(
    nodes: Sequence[Node], lines: BlockLines, requests: list[CoroutineFact], ends: _Ends, *, top: bool
) -> Iterator[Hop]:
    """Yield the nodes of one line, and what is below the last: an engine and the host for a file, else the server."""
    for index, node in enumerate(nodes):
        mine = BELOW if top and index == 0 else NOWHERE
        detail = node.filename if not node.filename.startswith("json:") else ""
        stuck = ends.where == "block" and top and not index
        yield _hop("node", node.name, f"{node.driver} {detail}".strip(), requests, mine, stuck=stuck)
    for node in nodes:
        if node.driver in LOCAL:
            engine = ENGINES.get(node.aio, node.aio or "AIO")
            here = ends.at_file(node, lines)
            yield _hop("aio", engine, "", requests if top else [], ENGINE, stuck=here and ends.where == "aio")
            yield Hop(kind="host", name="host", detail=node.filename, stuck=here and ends.where == "host")
            served = any(member.server for line in lines.every for member in line)
            if here and ends.where == "peer" and not served:
                yield Hop(kind="peer", name="server", detail="behind the host's file system", stuck=True)
            return
        if node.server:
            stuck = ends.at_server(node, lines)
            yield _hop("peer", node.server, node.driver, requests, SERVED, stuck=stuck)
            return


def _hop(
    kind: str, name: str, detail: str, requests: list[CoroutineFact], parks: frozenset[Park], *, stuck: bool
) -> Hop:
    here = [request for request in requests if request.park in parks] if parks else []
    cites: tuple[Cite, ...] = tuple(request.cite for request in here[:4])
    return Hop(kind=kind, name=name, detail=detail, in_flight=len(here) or None, stuck=stuck, cites=cites)  # type: ignore[arg-type]  # a literal of ours


def _thread(disk: DiskFact) -> str:
    if isinstance(disk.iothread, Unknown):
        return ""
    return f", iothread {disk.iothread.value}" if disk.iothread.value else ", no iothread"


def _limits(disk: DiskFact) -> str:
    if isinstance(disk.limits, Unknown):
        return ""
    return ", ".join(f"{name} {value}" for name, value in disk.limits.value.values)


def _sentence(disk: DiskFact, completed: int | None, end: Hop | None) -> str:
    did = "" if completed is None else f" It completed {completed} requests between the two snapshots."
    if end is None:
        return f"Nothing of {called(disk)} is known to be stuck.{did}"
    return f"The requests of {called(disk)} are stuck at {end.name} ({end.kind}).{did}"
