"""The tables of what requests pass through: disks, throttle groups, jobs, locks, rings."""

from __future__ import annotations

from autopsy.bundle.records import AioRing, UringState
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries import naming
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import BlockStats, DiskFact, Facts
from autopsy.facts.model.storage import ThrottleGroupFact
from autopsy.report.table import ABSENT, UNKNOWN, Row, Table, change, shown, table, why
from autopsy.report.units import count, duration, limit, milliseconds, size

KINDS = ("reads", "writes", "flushes", "unmaps", "failed")


def disks(facts: Facts, diagnosis: Diagnosis) -> Table:
    """Return each disk with what completed at both snapshots."""
    known = facts.disks.value if isinstance(facts.disks, Known) else ()
    named = diagnosis.subjects if diagnosis.where != "none" else ()
    rows = [_disk(disk, stuck=naming.record(subjects.disk(disk)) in named) for disk in known]
    columns = "Disk|Model|Thread|Format and file|In flight #|Completed, first #|Second #|Change #|Idle #|Failed #"
    return table("disks", "Disks", columns, rows, why(facts.disks))


def operations(facts: Facts) -> Table:
    """Return what each disk completed, by kind of operation."""
    rows = []
    for disk in facts.disks.value if isinstance(facts.disks, Known) else ():
        if not isinstance(disk.stats, Known):
            continue
        later = disk.stats_again.value if isinstance(disk.stats_again, Known) else None
        cells = [disk.name]
        for kind in KINDS:
            first, second = getattr(disk.stats.value, kind), getattr(later, kind) if later else None
            cells += [f"{first:,}", change(first, second)]
        rows.append(Row(tuple(cells), _stats_cites(disk)))
    columns = "Disk|Reads #|Change #|Writes #|Change #|Flushes #|Change #|Discards #|Change #|Failed #|Change #"
    return table("operations", "Completed operations by kind", columns, rows)


def throttle_groups(facts: Facts, diagnosis: Diagnosis) -> Table:
    """Return each throttle group with its timer."""
    groups = facts.throttle_groups.value if isinstance(facts.throttle_groups, Known) else ()
    named = diagnosis.subjects if diagnosis.where == "throttle" else ()
    rows = [
        Row(
            (
                group.name,
                ", ".join(group.members) or ABSENT,
                ", ".join(limit(*value) for value in group.limits.value.values) or "none"
                if isinstance(group.limits, Known)
                else UNKNOWN,
                shown(group.pending),
                _timer(group),
                _due(group),
            ),
            (group.cite,),
            stuck=naming.record(subjects.ThrottleGroup(group.name)) in named,
        )
        for group in groups
    ]
    note = why(facts.throttle_groups)
    return table("throttle", "Throttle groups", "Group|Members|Limits|Queued #|Timer|By its limits", rows, note)


def jobs(facts: Facts) -> Table:
    """Return each block job with its progress."""
    rows = [
        Row(
            (
                job.id,
                job.kind,
                job.status + (" (paused)" if job.paused else ""),
                f"{size(job.current)} of {size(job.total)}" if job.kind != "create" else f"{job.current}/{job.total}",
                f"{job.progressed.value:+,}" if isinstance(job.progressed, Known) else UNKNOWN,
                job.error or ABSENT,
            ),
            (job.cite,),
        )
        for job in (facts.jobs.value if isinstance(facts.jobs, Known) else ())
    ]
    return table("jobs", "Block jobs", "Job|Type|Status|Progress #|Change #|Error", rows, why(facts.jobs))


def locks(facts: Facts) -> Table:
    """Return each mutex that somebody waits for."""
    rows = []
    for mutex in facts.locks.value.mutexes if isinstance(facts.locks, Known) else ():
        own = mutex.owner in mutex.waiters
        name = mutex.in_object or mutex.name or "a mutex"
        waiters = ", ".join(map(str, mutex.waiters[:16])) + (", …" if len(mutex.waiters) > 16 else "")
        owner = (str(mutex.owner) if mutex.owner else "nobody") + (", who waits for it too" if own else "")
        rows.append(Row((name, f"{mutex.address:#x}", mutex.kind, owner, waiters), (mutex.cite,), own))
    note = why(facts.locks)
    if isinstance(facts.locks, Known):
        owner_of = facts.locks.value.bql_owner
        note = f"The BQL (QEMU's big lock): {_bql(owner_of.value)}." if isinstance(owner_of, Known) else why(owner_of)
    return table("locks", "Locks that somebody waits for", "Lock|Address|Kind|Owner|Waiters", rows, note)


def rings(facts: Facts) -> Table:
    """Return each completion ring at both snapshots: what is between head and tail is completed and not reaped."""
    if not isinstance(facts.rings, Known):
        return table("rings", "Completion rings", "Ring|Entries #", [], why(facts.rings))
    known = facts.rings.value
    rows = []
    again = {ring.address: ring for ring in known.aio_again}
    for ring in known.aio:
        cells = (f"Linux AIO {ring.address:#x}", f"{ring.entries:,}", _reap(ring), _reap(again.get(ring.address)))
        cite = Cite(known.cite.file, 0, f"ring {ring.address:#x}")
        rows.append(Row(cells, (cite,), _lies(ring) and _lies(again.get(ring.address))))
    later = {state.fd: state for state in known.uring_again}
    rows += [
        Row((f"io_uring, fd {state.fd}", ABSENT, _queues(state), _queues(later.get(state.fd))), (known.cite,))
        for state in known.uring
    ]
    columns = "Ring|Entries #|First snapshot|Second snapshot"
    return table("rings", "Completion rings", columns, rows)


def _disk(disk: DiskFact, *, stuck: bool) -> Row:
    first = disk.stats.value if isinstance(disk.stats, Known) else None
    second = disk.stats_again.value if isinstance(disk.stats_again, Known) else None
    files = [f"{node.driver} {node.filename}".strip() for node in disk.nodes]
    thread = shown(disk.iothread)
    return Row(
        (
            disk.name + (f" ({disk.backend})" if disk.backend not in {"", disk.name} else ""),
            shown(disk.model),
            f"iothread {thread.replace(',', ', ')}" if thread and thread != UNKNOWN else (thread or "main loop"),
            " on ".join(dict.fromkeys(files)) if disk.inserted else "no medium",
            shown(disk.in_flight),
            f"{first.completed:,}" if first else UNKNOWN,
            f"{second.completed:,}" if second else UNKNOWN,
            change(first.completed if first else None, second.completed if second else None),
            _idle(first),
            f"{first.failed:,}" if first else UNKNOWN,
        ),
        (disk.cite, *_stats_cites(disk)),
        stuck,
    )


def _stats_cites(disk: DiskFact) -> tuple[Cite, ...]:
    return tuple(fact.value.cite for fact in (disk.stats, disk.stats_again) if isinstance(fact, Known))


def _idle(stats: BlockStats | None) -> str:
    return ABSENT if stats is None or stats.idle_ns is None else duration(stats.idle_ns / 1e9)


def _timer(group: ThrottleGroupFact) -> str:
    if not isinstance(group.timer_ns, Known):
        return UNKNOWN
    ns = group.timer_ns.value
    if ns is None:
        return "none pending"
    return f"overdue by {milliseconds(-ns / 1e6)}" if ns < 0 else f"fires in {milliseconds(ns / 1e6)}"


def _due(group: ThrottleGroupFact) -> str:
    return f"in {milliseconds(group.due_ns.value / 1e6)}" if isinstance(group.due_ns, Known) else UNKNOWN


def _bql(owner: int) -> str:
    return f"held by thread {owner}" if owner else "held by nobody"


def _reap(ring: AioRing | None) -> str:
    if ring is None:
        return ABSENT
    if not ring.valid:
        return "not a valid ring"
    waiting = (ring.tail - ring.head) % max(1, ring.entries)
    return f"head {ring.head}, tail {ring.tail}: {count(waiting, 'completion')} not reaped"


def _lies(ring: AioRing | None) -> bool:
    """Tell whether a completion lies in the ring and nobody has taken it."""
    return ring is not None and ring.valid and ring.head != ring.tail


def _queues(state: UringState | None) -> str:
    if state is None:
        return ABSENT
    told_of = []
    if state.sq_head is not None and state.sq_tail is not None:
        told_of.append(f"{(state.sq_tail - state.sq_head) % 2**32:,} not submitted")
    if state.cq_head is not None and state.cq_tail is not None:
        told_of.append(f"{(state.cq_tail - state.cq_head) % 2**32:,} not reaped")
    return ", ".join(told_of) or UNKNOWN
