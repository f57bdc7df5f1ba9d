"""A capture's own frames name the mechanism where nothing else of it does, of threads that did not go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.built.pastes import DISPATCH, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED
from support.built.stacked import BQL, MAIN_RESTS, VCPU_RUNS, Stood, said_of

CONTEXT = (*LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire")
COND = ("__futex_abstimed_wait_common64", "___pthread_cond_wait")
JOB = ("block_job_remove_all_bdrv", "job_exit", *DISPATCH)
MAIN_WANTS_BQL = Stood("main", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN), wants=BQL)
IOTHREAD_WANTS_CONTEXT = Stood(
    "IO iot0", (*CONTEXT, "virtio_blk_handle_vq", "aio_poll", "iothread_run", *STARTED), wants="a context"
)
OPENS_RBD = (*COND, "std::condition_variable::wait<C_SaferCond>", "librbd::ImageState<I>::open", "rbd_open", *DISPATCH)
MIRROR_ENDS = ("nbd_teardown_connection", "bdrv_close", "block_job_remove_all_bdrv", "mirror_exit")

TOLD: tuple[tuple[str, str, tuple[Stood, ...]], ...] = (
    (
        "context-held-over-poll",
        "block",
        (
            IOTHREAD_WANTS_CONTEXT,
            Stood("main", (*POLL, "aio_wait_bh_oneshot", "virtio_scsi_dataplane_stop", *DISPATCH), owns=("a context",)),
        ),
    ),
    (
        "job-end-nested",
        "block",
        (Stood("main", (*POLL, *MIRROR_ENDS, "aio_bh_call", "aio_poll", *MIRROR_ENDS, *MAIN)),),
    ),
    ("job-end-drains", "block", (Stood("main", (*POLL, "bdrv_drained_begin", "backup_clean", *JOB)),)),
    ("peer-question-waits", "peer", (Stood("main", OPENS_RBD),)),
    ("host-call-waits", "host", (Stood("main", (*COND, "libusb_wait_for_event", "libusb_close", *DISPATCH)),)),
    (
        "busy-with-bql",
        "device",
        (Stood("CPU 0/KVM", ("virtio_queue_enabled", "virtio_x", *MMIO), runs=True, owns=(BQL,)), MAIN_WANTS_BQL),
    ),
    ("busy-with-bql", "block", (Stood("main", ("qcow2_cache_do_get", "qcow2_co_pwritev", *DISPATCH), runs=True),)),
    (
        "poll-inside-poll",
        "block",
        (
            Stood(
                "live_migration",
                (*POLL, "bdrv_drain_all_begin", "do_vm_stop", "migration_completion", *STARTED),
                owns=(BQL,),
            ),
            MAIN_WANTS_BQL,
        ),
    ),
    (
        "migration-thread-waits",
        "migration",
        (Stood("main", (*COND, "qemu_sem_wait", "postcopy_ram_incoming_setup", "qemu_loadvm_x", *DISPATCH)),),
    ),
)


@pytest.mark.parametrize(("signature", "where", "threads"), TOLD)
def test_a_mechanism_that_only_frames_tell_is_likely(signature: str, where: str, threads: tuple[Stood, ...]) -> None:
    found = said_of(*threads, VCPU_RUNS) if not any(t.name.startswith("CPU") for t in threads) else said_of(*threads)
    assert (found.signature, found.where, found.confidence) == (signature, where, "likely")
    assert found.cites


@pytest.mark.parametrize(("signature", "threads"), [(signature, threads) for signature, _, threads in TOLD])
def test_threads_that_went_on_are_told_nothing_of(signature: str, threads: tuple[Stood, ...]) -> None:
    going_on = tuple(replace(stood, moved=True, runs=False) for stood in threads)
    found = said_of(*going_on, VCPU_RUNS, answers=True)
    assert found.signature != signature
    assert found.where in {"none", "unknown"}


HAS_THE_VNC_LOCK = Stood("main", (*COND, "vnc_jobs_join", "vnc_disconnect_finish", *MAIN), owns=("a VNC lock",))


def test_a_worker_that_wants_what_its_waiter_holds_is_named() -> None:
    worker = Stood("vnc_worker", (*LOCK, "vnc_lock_output", "vnc_worker_thread_loop", *STARTED), wants="a VNC lock")
    assert said_of(HAS_THE_VNC_LOCK, worker, VCPU_RUNS).where == "control"
    idle = Stood("vnc_worker", (*COND, "vnc_worker_thread_loop", *STARTED))
    found = said_of(HAS_THE_VNC_LOCK, idle, VCPU_RUNS)
    assert "vnc_worker" not in found.headline


DRAINING = Stood("IO iot0", (*POLL, "blk_drain", "virtio_blk_reset", "aio_poll", "iothread_run", *STARTED))
POLLING = Stood("IO iot0", (*POLL, "iothread_run", *STARTED))


def test_an_iothread_that_drains_for_ever_is_no_part_of_a_healthy_vm() -> None:
    found = said_of(MAIN_RESTS, VCPU_RUNS, DRAINING, answers=True)
    assert (found.where, found.signature) == ("block", "poll-inside-poll")
    assert said_of(MAIN_RESTS, VCPU_RUNS, POLLING, answers=True).where == "none"


RETURN_PATH = Stood(
    "return path", ("__ppoll", "qemu_poll_ns", "qemu_rdma_wait_comp_channel", "source_return_path_thread")
)
JOINING = ("pthread_join", "qemu_thread_join", "await_return_path_close_on_source", "migration_thread", *STARTED)


def test_a_migration_that_joins_a_thread_for_ever_is_told_though_the_monitor_answers() -> None:
    joining = Stood("live_migration", JOINING, joins="return path")
    found = said_of(MAIN_RESTS, VCPU_RUNS, RETURN_PATH, joining, answers=True)
    assert (found.where, found.confidence) == ("migration", "likely")
    assert "return path" in found.headline
    sleeping = Stood(
        "live_migration", (*COND, "qemu_sem_timedwait", "migration_rate_limit", "migration_thread", *STARTED)
    )
    assert said_of(MAIN_RESTS, VCPU_RUNS, sleeping, answers=True).where == "none"


def test_a_drain_is_the_request_s_whose_place_is_told() -> None:
    drain = Stood(
        "live_migration",
        (*POLL, "bdrv_drained_begin", "bdrv_inactivate_all", "migration_completion", *STARTED),
        owns=(BQL,),
    )
    waits = (
        "qemu_coroutine_switch",
        "qemu_coroutine_yield",
        "nbd_receive_reply",
        "bdrv_co_flush",
        "coroutine_trampoline",
    )
    found = said_of(drain, MAIN_WANTS_BQL, VCPU_RUNS, parked=[waits])
    assert (found.where, found.signature) == ("peer", "nbd-silent")
    runs = (
        "qemu_coroutine_switch",
        "qemu_coroutine_yield",
        "thread_pool_submit_co",
        "bdrv_co_pwritev_part",
        "coroutine_trampoline",
    )
    assert said_of(drain, MAIN_WANTS_BQL, VCPU_RUNS, parked=[runs]).where != "peer"
