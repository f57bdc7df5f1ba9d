"""Where a parked coroutine yielded, told from the names its frames have."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from autopsy.bundle.records import Frame
from autopsy.facts.model.facts import Park

QUEUE = frozenset({"qemu_co_queue_wait_impl", "qemu_co_queue_wait"})
MUTEX = frozenset({"qemu_co_mutex_lock", "qemu_co_mutex_lock_slowpath"})
ENTRIES = frozenset({"coroutine_trampoline", "qemu_coroutine_switch", "qemu_coroutine_yield", "__start_context"})

# Wherever one of these is met first, walking outwards, it names the place. Names that only full symbols or a module's
# own table give stand beside the exported ones: stripped builds show only the latter.
ANY = MappingProxyType(
    {
        "bdrv_graph_co_rdlock": Park.GRAPH_LOCK,
        "bdrv_co_yield_to_drain": Park.YIELD_TO_DRAIN,
        "blk_wait_while_drained": Park.DRAINED,
        "bdrv_wait_serialising_requests_locked": Park.SERIALISING,
        "bdrv_wait_serialising_requests": Park.SERIALISING,
        "bdrv_make_request_serialising": Park.SERIALISING,
        "suspend_request": Park.BLKDEBUG,
        "bdrv_debug_event": Park.BLKDEBUG,
        "bdrv_co_debug_event": Park.BLKDEBUG,  # since QEMU 8.1
        "thread_pool_submit_co": Park.THREADS,
        "raw_thread_pool_submit": Park.THREADS,
        "laio_co_submit": Park.LINUX_AIO,
        "luring_co_submit": Park.IO_URING,
        "nbd_receive_reply": Park.NBD_REPLY,
        "nbd_receive_replies": Park.NBD_REPLY,
        "nbd_co_receive_one_chunk": Park.NBD_REPLY,
        "nbd_co_do_receive_one_chunk": Park.NBD_REPLY,
        "nbd_co_do_establish_connection": Park.NBD_CONNECT,
        "nbd_co_establish_connection": Park.NBD_CONNECT,
        "nbd_reconnect_attempt": Park.NBD_CONNECT,
        "qemu_rbd_start_co": Park.RBD,
        "iscsi_co_wait_for_task": Park.ISCSI,
        "nfs_co_preadv": Park.NFS,
        "nfs_co_pwritev": Park.NFS,
        "nfs_co_flush": Park.NFS,
        "curl_co_preadv": Park.CURL,
        "curl_setup_preadv": Park.CURL,
        "co_yield": Park.SSH,
        "ssh_co_readv": Park.SSH,
        "ssh_co_writev": Park.SSH,
        "qemu_gluster_co_rw": Park.GLUSTER,
        "qemu_gluster_co_flush_to_disk": Park.GLUSTER,
        "blkio_co_preadv": Park.BLKIO,
        "blkio_co_pwritev": Park.BLKIO,
        "blkio_co_flush": Park.BLKIO,
        "nvme_co_prw_aligned": Park.NVME,
        "nvme_co_flush": Park.NVME,
        "handle_dependencies": Park.QCOW2_DEPENDENCY,
        "qcow2_co_process": Park.QCOW2_THREADS,
        "qcow2_co_encdec": Park.QCOW2_THREADS,
        "aio_task_pool_wait_one": Park.TASK_POOL,
        "aio_task_pool_wait_slot": Park.TASK_POOL,
        "aio_task_pool_wait_all": Park.TASK_POOL,
        "reqlist_wait_one": Park.COPY_BEFORE_WRITE,
        "reqlist_wait_all": Park.COPY_BEFORE_WRITE,
        "cbw_do_copy_before_write": Park.COPY_BEFORE_WRITE,
        "block_copy": Park.COPY_BEFORE_WRITE,
        "qemu_co_get_from_shres": Park.COPY_MEMORY,
        "co_get_from_shres": Park.COPY_MEMORY,
        "mirror_wait_on_conflicts": Park.MIRROR,
        "mirror_wait_for_free_in_flight_slot": Park.MIRROR,
        "mirror_wait_for_any_operation": Park.MIRROR,
        "job_pause_point": Park.JOB,
        "job_sleep_ns": Park.JOB,
        "job_yield": Park.JOB,
        "job_do_yield": Park.JOB,
        "qmp_dispatch": Park.QMP_COMMAND,
        "monitor_qmp_dispatcher_co": Park.MONITOR_IDLE,
        "pvebackup_co_dump_pbs_cb": Park.PVE_BACKUP,
        "pvebackup_co_dump_vma_cb": Park.PVE_BACKUP,
        "proxmox_backup_co_write_data": Park.PVE_BACKUP,
        "proxmox_backup_co_connect": Park.PVE_BACKUP,
        "process_savevm_co": Park.MIGRATION,
        "process_incoming_migration_co": Park.MIGRATION,
        "qemu_fill_buffer": Park.MIGRATION,
        "nbd_trip": Park.NBD_SERVER,
        "nbd_co_receive_request": Park.NBD_SERVER,
        "nbd_negotiate": Park.NBD_SERVER,
        "nbd_co_client_start": Park.NBD_SERVER,
    }
)

# These name the place only together with what the coroutine sleeps on.
IN_QUEUE = MappingProxyType(
    {
        "throttle_group_co_io_limits_intercept": Park.THROTTLE,
        "bdrv_co_flush": Park.FLUSH_QUEUE,
        "nbd_co_send_request": Park.NBD_SLOT,
        "nbd_co_request": Park.NBD_SLOT,
        "bdrv_co_preadv_part": Park.SERIALISING,
        "bdrv_co_pwritev_part": Park.SERIALISING,
        "bdrv_co_preadv": Park.SERIALISING,
        "bdrv_co_pwritev": Park.SERIALISING,
        "bdrv_co_pdiscard": Park.SERIALISING,
        "bdrv_co_copy_range_to": Park.SERIALISING,
        "blk_co_preadv": Park.DRAINED,
        "blk_co_preadv_part": Park.DRAINED,
        "blk_co_do_preadv_part": Park.DRAINED,
        "blk_co_pwritev": Park.DRAINED,
        "blk_co_pwritev_part": Park.DRAINED,
        "blk_co_do_pwritev_part": Park.DRAINED,
        "blk_co_flush": Park.DRAINED,
        "blk_co_pdiscard": Park.DRAINED,
        "blk_co_pread": Park.DRAINED,
        "blk_co_pwrite": Park.DRAINED,
    }
)
IN_MUTEX = MappingProxyType(
    {
        "throttle_group_co_io_limits_intercept": Park.THROTTLE_LOCK,
        "schedule_next_request": Park.THROTTLE_LOCK,
        "throttle_group_co_restart_queue": Park.THROTTLE_LOCK,
        "throttle_group_restart_queue_entry": Park.THROTTLE_LOCK,
        "nbd_co_send_request": Park.NBD_SEND,
        "nbd_co_request": Park.NBD_SEND,
    }
)
IN_SLEEP = MappingProxyType(
    {
        "bdrv_co_flush": Park.FLUSH,
        "qemu_co_sleep": Park.SLEEP,
        "qemu_co_sleep_ns": Park.SLEEP,
        "nbd_co_send_request": Park.NBD_SEND,  # it has the lock of those that send, and its socket takes no more
    }
)

# QEMU's own NBD server lies beside the client: what came to one of these without a request of the block layer serves
# a client of its own, and waits for that.
NBD_REQUESTS = frozenset({Park.NBD_REPLY, Park.NBD_SEND, Park.NBD_SLOT})
SENDING = frozenset({"qio_channel_writev_full_all", "qio_channel_writev_all"})
TRAMPOLINES = frozenset({"coroutine_trampoline", "__start_context"})
BESIDE_TRAMPOLINE = "qemu_coroutine_switch"  # static: a stripped build knows it by the exported function before it

# What a backup's filter asks for within a time (cbw-timeout) has a coroutine of its own; its first function is static.
TIMED, BESIDE_TIMED = "qemu_co_timeout_entry", "co_put_to_shres"
WAITS_A_TIME = "qemu_co_timeout"

# The function in which a job's coroutine begins is static: what lies before it depends on the build.
BESIDE_JOBS = ("job_", "block_job_")

# Exported names beside which the block layer's static functions lie: a request is under way.
BLOCK_LAYER = ("bdrv_co_", "blk_co_", "blk_aio_")

# A block driver that is a module of its own says by its file which library it waits for.
MODULES = MappingProxyType(
    {
        "block-rbd": Park.RBD,
        "block-iscsi": Park.ISCSI,
        "block-nfs": Park.NFS,
        "block-curl": Park.CURL,
        "block-ssh": Park.SSH,
        "block-gluster": Park.GLUSTER,
    }
)

# Static functions have no name in a stripped build, but their exported neighbours tell the source file.
NEIGHBOURS = (
    ("queue", "blk_", Park.DRAINED),
    ("queue", "bdrv_", Park.SERIALISING),
    ("queue", "nbd_", Park.NBD_SLOT),
    ("mutex", "nbd_", Park.NBD_SEND),
    ("mutex", "throttle_", Park.THROTTLE_LOCK),
    ("mutex", "qcow2_", Park.QCOW2_LOCK),
    ("sleep", "nbd_", Park.NBD_REPLY),
    ("sleep", "iscsi_", Park.ISCSI),
    ("sleep", "blkdebug_", Park.BLKDEBUG),
)


WORDS = MappingProxyType(
    {"mutex": "qemu_co_mutex_lock", "queue": "qemu_co_queue_wait_impl", "sleep": "qemu_coroutine_yield"}
)
WITH_WAIT = MappingProxyType({"mutex": IN_MUTEX, "queue": IN_QUEUE, "sleep": IN_SLEEP})


def park_point(frames: Sequence[Frame]) -> tuple[Park, tuple[str, ...]]:
    """Return where a coroutine is parked and the names that say so, from the innermost frame that tells it."""
    park, told_by = _innermost(frames)
    if park in NBD_REQUESTS and _is_whole(frames) and not _is_request(frames):
        park, told_by = Park.NBD_SERVER, (*told_by, "no request of the block layer")
    if park is Park.NBD_SERVER and any(frame.function in SENDING for frame in frames):
        return Park.NBD_SERVER_SEND, told_by
    return park, told_by


def is_timed(frames: Sequence[Frame]) -> bool:
    """Tell whether a coroutine was begun by somebody who waits for it for a time only."""
    begins = next((frame for frame in reversed(frames) if not _is_trampoline(frame)), None)
    return begins is not None and (begins.function == TIMED or (not begins.function and begins.near == BESIDE_TIMED))


def waits_a_time(frames: Sequence[Frame]) -> bool:
    """Tell whether a coroutine waits, for a time, for another one to end: it sleeps meanwhile."""
    return any(frame.function == WAITS_A_TIME for frame in frames)


def _is_trampoline(frame: Frame) -> bool:
    return frame.function in TRAMPOLINES or (not frame.function and frame.near == BESIDE_TRAMPOLINE)


def _innermost(frames: Sequence[Frame]) -> tuple[Park, tuple[str, ...]]:
    wait, start = _wait(frames)
    timed = waits_a_time(frames)
    for frame in frames[start:]:
        if timed and _by_name(wait, frame.function) is Park.SLEEP:
            continue  # what is slept for has a name further out
        if park := _by_name(wait, frame.function):
            if park is Park.SLEEP and _is_request(frames[start:]):
                return Park.DRIVER, (frame.function, "under the block layer")
            return park, (WORDS[wait], frame.function)
        if park := _by_module(frame):
            return park, (frame.module,)
        if park := _by_neighbour(wait, frame):
            in_job = park is Park.SERIALISING and _is_job_itself(frames)
            return Park.MIRROR if in_job else park, (WORDS[wait], "a job's own" if in_job else f"near {frame.near}")
    if wait == "mutex":
        return Park.CO_MUTEX, (WORDS[wait],)
    block = next((frame.function for frame in frames[start:] if frame.function.startswith(("bdrv_co_", "blk_co_"))), "")
    block = block or next((f"near {frame.near}" for frame in frames[start:] if frame.near.startswith(BLOCK_LAYER)), "")
    return (Park.DRIVER, (WORDS[wait], block)) if block else (Park.OTHER, (WORDS[wait],))


def _is_job_itself(frames: Sequence[Frame]) -> bool:
    """Tell whether a coroutine is a job's own: it begins among the functions of jobs, and carries no request."""
    begins = next((frame for frame in reversed(frames) if frame.near != BESIDE_TRAMPOLINE), None)
    by_name = any(frame.function.startswith(BLOCK_LAYER) for frame in frames)
    return begins is not None and not begins.function and begins.near.startswith(BESIDE_JOBS) and not by_name


def _is_whole(frames: Sequence[Frame]) -> bool:
    """Tell whether a stack goes on to the coroutine's entry: whatever it does not hold, the coroutine is not in."""
    return _is_trampoline(frames[-1] if frames else Frame(pc=0))


def _is_request(frames: Sequence[Frame]) -> bool:
    """Tell whether a coroutine came through the block layer: a driver that sleeps holds a request meanwhile."""
    return any(frame.function.startswith(BLOCK_LAYER) or frame.near.startswith(BLOCK_LAYER) for frame in frames)


def _wait(frames: Sequence[Frame]) -> tuple[str, int]:
    """Return what the coroutine sleeps on, and the first frame outside of that."""
    wait = "sleep"
    for index, frame in enumerate(frames):
        if frame.function in MUTEX:
            wait = "mutex"
        elif frame.function in QUEUE:
            wait = "queue"
        elif frame.function not in ENTRIES and (frame.function or index):
            return wait, index
    return wait, len(frames)


def _by_name(wait: str, function: str) -> Park | None:
    if not function:
        return None
    if wait == "mutex" and function.startswith("qcow2_"):
        return Park.QCOW2_LOCK
    if function.startswith(("proxmox_backup_co_", "pvebackup_co_")):
        return Park.PVE_BACKUP
    return WITH_WAIT[wait].get(function) or ANY.get(function)


def _by_module(frame: Frame) -> Park | None:
    file = frame.module.rpartition("/")[2]
    return next((park for module, park in MODULES.items() if module in file), None)


def _by_neighbour(wait: str, frame: Frame) -> Park | None:
    if frame.function:
        return None
    return next((park for kind, near, park in NEIGHBOURS if kind == wait and frame.near.startswith(near)), None)
