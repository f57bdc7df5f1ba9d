"""Walk what runs the VM besides its disks: jobs, monitors, run state, migration, the BQL."""

from __future__ import annotations

import drgn

from autopsy.bundle.heap.devices import HeapJob, MonitorState
from autopsy.bundle.heap.loops import HeapMutex
from autopsy.examine.heap.shape import Walk, cast, enumerator, lock, number, pointer, string, word


def run_state(walk: Walk) -> str:
    """Return the run state in QMP's words."""
    state = walk.variable("current_run_state")
    return "" if state is None else word(state, "RUN_STATE_")


def migration(walk: Walk) -> str:
    """Return the migration's status in QMP's words; `none` before the first."""
    current = walk.variable("current_migration")
    if current is None or not pointer(current):
        return ""
    # A MigrationStatus in v10; an int that holds one before that.
    return enumerator(walk.program.type("enum MigrationStatus"), int(current.state), "MIGRATION_STATUS_")


def bql(walk: Walk) -> HeapMutex | None:
    """Return the big QEMU lock, which was qemu_global_mutex until v8.2."""
    mutex = walk.variable("bql", "qemu_global_mutex")
    return None if mutex is None else lock(mutex)


def aio_waiters(walk: Walk) -> int | None:
    """Return how many threads are inside AIO_WAIT_WHILE."""
    waiters = walk.variable("global_aio_wait")
    return None if waiters is None else number(waiters, "num_waiters")


def drain_all_count(walk: Walk) -> int | None:
    """Return how many bdrv_drain_all sections are open."""
    count = walk.variable("bdrv_drain_all_count")
    return None if count is None else int(count)


def dispatcher_busy(walk: Walk) -> bool | None:
    """Return whether the coroutine that runs QMP commands is at one or was told of one."""
    busy = walk.variable("qmp_dispatcher_co_busy")
    return None if busy is None else bool(busy)


def jobs(walk: Walk) -> tuple[HeapJob, ...]:
    """Return every job."""
    head = walk.variable("jobs")
    heap_jobs: list[HeapJob] = []
    for element in () if head is None else walk.chain("jobs", head, "job_list"):
        with walk.reading(f"job at {pointer(element):#x}"):
            heap_jobs.append(_job(walk, element))
    return tuple(heap_jobs)


def monitors(walk: Walk) -> tuple[MonitorState, ...]:
    """Return every monitor."""
    head = walk.variable("mon_list")
    monitor_states: list[MonitorState] = []
    for element in () if head is None else walk.chain("monitors", head, "entry"):
        with walk.reading(f"monitor at {pointer(element):#x}"):
            monitor_states.append(_monitor(walk, element))
    return tuple(monitor_states)


def _job(walk: Walk, job: drgn.Object) -> HeapJob:
    context = pointer(job.aio_context)
    return HeapJob(
        address=pointer(job),
        id=string(job.id),
        type=word(job.driver.job_type, "JOB_TYPE_"),
        status=word(job.status, "JOB_STATUS_"),
        pause_count=int(job.pause_count),
        busy=bool(job.busy),
        paused=bool(job.paused),
        user_paused=bool(job.user_paused),
        cancelled=bool(job.cancelled),
        deferred_to_main_loop=bool(job.deferred_to_main_loop),
        progress_current=int(job.progress.current),
        progress_total=int(job.progress.total),
        coroutine=pointer(job.co),
        context=context,
        sleep_timer=walk.timer(job.sleep_timer.address_of_(), context),
        ret=int(job.ret),
    )


def _monitor(walk: Walk, monitor: drgn.Object) -> MonitorState:
    output = monitor.outbuf  # glib's GString {char *str; gsize len; …} since v6.0
    is_qmp = bool(monitor.is_qmp)
    walk.knows(f"monitor at {pointer(monitor):#x}", monitor, "mon_lock")
    length = None
    if is_qmp:
        qmp = cast(walk.program, "MonitorQMP", pointer(monitor))
        walk.knows(f"monitor at {pointer(monitor):#x}", qmp, "qmp_queue_lock")
        length = number(qmp.qmp_requests, "length")
    return MonitorState(
        address=pointer(monitor),
        is_qmp=is_qmp,
        suspend_count=int(monitor.suspend_cnt),
        unread_bytes=number(output, "len") if pointer(output) else 0,
        queued_requests=length,
    )
