"""Whose request a parked coroutine carries: told by the heap, else by what only one disk can wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from autopsy.bundle import layout
from autopsy.bundle.records import Frame
from autopsy.facts.cite import Fact, Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, DiskFact, JobFact, Node, Park
from autopsy.facts.model.yield_points import THROTTLED
from autopsy.facts.yield_points import BESIDE_JOBS, BESIDE_TRAMPOLINE, NBD_REQUESTS, TRAMPOLINES

HEAP = layout.evidence(layout.GDB_THREADS, layout.HEAP)
NOT_ASKED = Unknown(layout.evidence(layout.QUERY_STATUS, layout.QMP), "nobody asked for the jobs")

# They have more children than the one that query-blockstats follows.
BRANCHING = frozenset({"copy-before-write", "backup-top", "quorum", "replication", "blkverify", "blklogwrites", "vmdk"})


# A request that stands in a driver without a name stands in the one of its disk's drivers that can make it wait.
WAITING_DRIVERS: Mapping[str, Park] = MappingProxyType(
    {
        "blkdebug": Park.BLKDEBUG,
        "nbd": Park.NBD_REPLY,
        "rbd": Park.RBD,
        "iscsi": Park.ISCSI,
        "nfs": Park.NFS,
        "ssh": Park.SSH,
        "http": Park.CURL,
        "https": Park.CURL,
        "gluster": Park.GLUSTER,
        "nvme": Park.NVME,
    }
)


# A device's requests enter the block layer by blk_aio_*, whose coroutines begin in static functions. These jobs call
# the exported ones, and so does the server of an export.
JOB_ENTRY = "job_co_entry"
MIRROR = "mirror"
COPYING = frozenset({MIRROR, "commit", "stream"})
ENTERED_BY_NAME = ("blk_co_pread", "blk_co_pwrite", "blk_co_pdiscard", "blk_co_copy_range", "blk_co_flush")
OF_AN_EXPORT = ("nbd_", "vhost_user_", "vduse_", "virtio_blk_")


def link(
    coroutines: Fact[tuple[CoroutineFact, ...]],
    disks: Fact[tuple[DiskFact, ...]],
    drivers: Fact[frozenset[str]],
    nodes: tuple[Node, ...] = (),
    jobs: Fact[tuple[JobFact, ...]] = NOT_ASKED,
) -> Fact[tuple[CoroutineFact, ...]]:
    """Return the coroutines with `disk` told by its disk's name wherever it can be told, and `of_job` likewise.

    `drivers` are those of all nodes that there are, known only where QEMU listed them; `nodes` those that are known.
    """
    if isinstance(coroutines, Unknown):
        return coroutines
    if isinstance(drivers, Known):
        checked = (_checked(coroutine, drivers.value) for coroutine in coroutines.value)
        coroutines = Known(tuple(checked), coroutines.cite)
    if isinstance(jobs, Known) and any(job.kind in COPYING for job in jobs.value):
        requests = (replace(coroutine, of_job=_is_of_job(coroutine)) for coroutine in coroutines.value)
        coroutines = Known(tuple(requests), coroutines.cite)
        if any(job.kind == MIRROR for job in jobs.value):
            requests = (replace(coroutine, by_mirror=_is_by_mirror(coroutine)) for coroutine in coroutines.value)
            coroutines = Known(tuple(requests), coroutines.cite)
    if isinstance(disks, Unknown):
        return coroutines
    named = tuple(_driver(coroutine, disks.value, nodes) for coroutine in coroutines.value)
    owned = tuple((coroutine, _disk(coroutine, disks.value)) for coroutine in named)
    others = _asked_by_others(owned, disks.value)
    return Known(
        tuple(replace(coroutine, disk=others.get(coroutine.address, disk)) for coroutine, disk in owned),
        coroutines.cite,
    )


def _checked(coroutine: CoroutineFact, drivers: frozenset[str]) -> CoroutineFact:
    """Take a place back that was guessed from its neighbour's name, where no node has such a driver."""
    guessed = any(name.startswith("near ") for name in coroutine.named_by)
    wanted = coroutine.park.drivers
    if not guessed or not wanted or wanted & drivers:
        return coroutine
    park = Park.NBD_SERVER if coroutine.park in NBD_REQUESTS else Park.DRIVER
    why = f"no node has the driver {' or '.join(sorted(wanted))}"
    return replace(coroutine, park=park, named_by=(*coroutine.named_by, why))


def _is_of_job(coroutine: CoroutineFact) -> bool:
    """Tell whether a request was put by a caller of the block layer that is neither a device nor an export."""
    if coroutine.park is Park.MIRROR:
        return True
    begins = next((frame for frame in reversed(coroutine.frames) if frame.function not in TRAMPOLINES), None)
    if begins is not None and (begins.function == JOB_ENTRY or _is_beside_jobs(coroutine.frames)):
        return True
    entered = [place for place, frame in enumerate(coroutine.frames) if frame.function.startswith(ENTERED_BY_NAME)]
    outside = [frame.function or frame.near for frame in coroutine.frames[entered[-1] + 1 :]] if entered else []
    # A guest's write that a mirror sends on comes from blk_aio_*, or from what lies beside it in a stripped build.
    return bool(entered) and not any(name.startswith(("blk_", *OF_AN_EXPORT)) for name in outside)


def _is_by_mirror(coroutine: CoroutineFact) -> bool:
    """Tell whether a request on its way through nodes enters the block layer anew: only a mirror's filter has that.

    It writes to the mirror's target by a block back end of its own; a backup's filter goes by nodes alone.
    """
    names = [frame.function for frame in coroutine.frames]
    within = next((place for place, name in enumerate(names) if name.startswith(ENTERED_BY_NAME)), len(names))
    return not coroutine.of_job and any(name.startswith("bdrv_co_p") for name in names[within + 1 :])


def _is_beside_jobs(frames: Sequence[Frame]) -> bool:
    """Tell whether a coroutine begins in a static function beside those of jobs, as a job's own does."""
    outer = [frame for frame in frames[-2:] if frame.near != BESIDE_TRAMPOLINE and frame.function not in TRAMPOLINES]
    return bool(outer) and not outer[-1].function and outer[-1].near.startswith(BESIDE_JOBS)


def _driver(coroutine: CoroutineFact, disks: tuple[DiskFact, ...], nodes: tuple[Node, ...]) -> CoroutineFact:
    """Name the driver that a request stands in, where the disks have only one that can make it wait.

    A request may be no disk's: where no disk has such a driver, any node may.
    """
    if coroutine.park is not Park.DRIVER or not all(map(is_whole, disks)):
        return coroutine
    waiting = {node.driver: node for disk in disks for node in disk.nodes if node.driver in WAITING_DRIVERS}
    if not waiting and any(not frame.function for frame in coroutine.frames):  # names would have told the place
        waiting = {node.driver: node for node in nodes if node.driver in WAITING_DRIVERS}
    if isinstance(coroutine.node, Known):
        waiting = {driver: node for driver, node in waiting.items() if node.name == coroutine.node.value}
    if len(waiting) != 1:
        return coroutine
    driver, node = next(iter(waiting.items()))
    why = f"the only driver that waits is {driver} (node {node.name})"
    return replace(coroutine, park=WAITING_DRIVERS[driver], named_by=(*coroutine.named_by, why))


def _disk(coroutine: CoroutineFact, disks: tuple[DiskFact, ...]) -> Fact[str]:
    if coroutine.of_job:
        return Unknown(HEAP, "it is a block job's own request")
    if isinstance(coroutine.disk, Known):
        title = coroutine.disk.value
        named = [disk for disk in disks if title in {disk.backend, disk.device, disk.name, top(disk)}]
        return Known(named[0].name, coroutine.disk.cite) if named else coroutine.disk
    possible = [disk for disk in disks if disk.inserted and may_be_of(disk, coroutine)]
    if len(possible) > 1:
        # An exact count of nothing in flight is as good as a name.
        possible = [disk for disk in possible if not (isinstance(disk.in_flight, Known) and disk.in_flight.value == 0)]
    if len(possible) == 1:
        return Known(possible[0].name, coroutine.cite)
    names_of_them = ", ".join(disk.name for disk in possible[:8]) or "none that is known"
    return Unknown(HEAP, f"{coroutine.disk.why}; the disks that can wait there: {names_of_them}")


def _asked_by_others(
    owned: Sequence[tuple[CoroutineFact, Fact[str]]], disks: tuple[DiskFact, ...]
) -> dict[int, Unknown]:
    """Return the requests, by their coroutines, of which a disk that goes on has more than its guest asked it for.

    Those that stand are then not all its own: somebody else than the guest, as a client of an export or a person at the
    human monitor, asked a disk that has nothing of its guest's in flight.
    """
    others: dict[int, Unknown] = {}
    for disk in disks:
        if not (isinstance(disk.in_flight, Known) and isinstance(disk.completed, Known) and disk.completed.value > 0):
            continue
        stand = [
            coroutine
            for coroutine, owner in owned
            if isinstance(owner, Known) and owner.value == disk.name and _stands(coroutine)
            if isinstance(coroutine.disk, Unknown)  # the heap did not tell it
            if sum(may_be_of(other, coroutine) for other in disks if other.inserted) > 1
        ]
        if len(stand) > disk.in_flight.value:
            why = f"{len(stand)} stand, and disk {disk.name} has {disk.in_flight.value} of its guest's in flight"
            others |= {coroutine.address: Unknown(HEAP, why) for coroutine in stand}
    return others


def _stands(coroutine: CoroutineFact) -> bool:
    return isinstance(coroutine.stuck, Known) and coroutine.stuck.value


def top(disk: DiskFact) -> str:
    """Return the name of a disk's topmost node."""
    return disk.nodes[0].name if disk.nodes else ""


def can_wait(disk: DiskFact, park: Park) -> bool:
    """Tell whether a disk's requests can wait at a place, as far as its chain is known."""
    if park in THROTTLED:
        return isinstance(disk.throttle_group, Unknown) or bool(disk.throttle_group.value)
    if not is_whole(disk):
        return True
    drivers = {node.driver for node in disk.nodes if node.driver}
    if park.drivers:
        return not drivers or bool(drivers & park.drivers)
    if park.engine:
        engines = {node.aio for node in disk.nodes if node.aio}
        return not engines or park.engine in engines or (park is Park.THREADS)
    return True


def may_be_of(disk: DiskFact, coroutine: CoroutineFact) -> bool:
    """Tell whether a parked request can be a disk's. A mirror's target is no part of its chain."""
    return coroutine.by_mirror or can_wait(disk, coroutine.park)


def is_whole(disk: DiskFact) -> bool:
    """Tell whether all branches of a disk's chain are known: a backup's target is one that few answers tell."""
    return not any(node.driver in BRANCHING and len(node.children) < 2 for node in disk.nodes)
