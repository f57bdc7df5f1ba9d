"""Families of functions that a stack is told by, each beside the nearest stack that is another matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.pastes import DISPATCH, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED

Stack = tuple[str, Sequence[str]]

COND = ("__futex_abstimed_wait_common64", "___pthread_cond_wait")
MAIN_WANTS_BQL = ("kvm", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN))
RFIFO = ("pthread_cond_wait", "qemu_cond_wait", "rfifolock_lock", "aio_context_acquire")
RUST = ("syscall", "std::sys::unix::futex::futex_wait", "std::thread::park", "tokio::runtime::park::block_on")
ASKS_SPICE = ("CPU 0/KVM", ("read", "dispatcher_send_message", "qxl_spice_x", *MMIO))
SPICE_SENDS = ("SPICE Worker", ("clock_nanosleep", "red_channel_client_wait_x", "red_worker_main", "start_thread"))
REPLAYS = ("CPU 0/TCG", (*LOCK_BQL, "replay_interrupt", "rr_cpu_thread_fn", *STARTED))
WANTS_REPLAY = ("kvm", (*LOCK, "replay_mutex_lock", "replay_checkpoint", *MAIN))
NBD_PARKED = ("qemu_coroutine_switch", "qemu_coroutine_yield", "nbd_co_receive_one_chunk", "bdrv_co_flush")
VNC_WAITS = ("kvm", (*COND, "vnc_jobs_join", "vnc_disconnect_finish", *MAIN))

TOLD: tuple[tuple[str, str, tuple[Stack, ...]], ...] = (
    (
        "context-held-over-poll",
        "block",
        (
            ("kvm", (*RFIFO, "bdrv_drain_all", "do_vm_stop", *DISPATCH)),
            ("IO iot0", (*POLL, "bdrv_drain", "blk_set_aio_context", "aio_poll", "iothread_run", *STARTED)),
        ),
    ),
    ("peer-question-waits", "peer", (("kvm", (*RUST, "proxmox_backup_disconnect", "pvebackup_co_x", *DISPATCH)),)),
    ("peer-question-waits", "peer", (("kvm", ("nanosleep", "usleep", "glfs_fini", "qemu_gluster_close", *DISPATCH)),)),
    ("peer-question-waits", "peer", (("kvm", ("poll", "_xcb_conn_wait", "_XReply", "gd_refresh", *DISPATCH)),)),
    ("peer-question-waits", "peer", (("kvm", (*COND, "pa_threaded_mainloop_wait", "audio_run", *DISPATCH)),)),
    ("peer-question-waits", "peer", (("kvm", ("poll", "__res_context_send", "getaddrinfo", "qmp_x", *DISPATCH)),)),
    ("peer-question-waits", "peer", (("kvm", (*POLL, "tpm_backend_finish_sync", "tpm_tis_reset", *DISPATCH)),)),
    ("host-call-waits", "host", (("kvm", (*POLL, "nvme_admin_cmd_sync", "nvme_init", *DISPATCH)),)),
    ("host-call-waits", "host", (("kvm", ("poll", "libusb_handle_events", "usb_host_abort_xfers", *DISPATCH)),)),
    ("host-call-waits", "host", (("kvm", ("madvise", "ram_block_discard_range", "balloon_x", *DISPATCH)),)),
    ("spice-worker-waits", "device", (ASKS_SPICE, MAIN_WANTS_BQL)),
    ("spice-worker-waits", "peer", (SPICE_SENDS, ASKS_SPICE, MAIN_WANTS_BQL)),
    ("lock-order-with-bql", "control", (REPLAYS, WANTS_REPLAY)),
    (
        "lock-order-with-bql",
        "control",
        (
            ("IO mon_iothread", (*LOCK_BQL, "monitor_puts", "iothread_run", *STARTED)),
            ("kvm", (*LOCK, "monitor_qapi_event_emit", "job_event_completed", *DISPATCH)),
        ),
    ),
    (
        "lock-taken-twice",
        "block",
        (
            (
                "kvm",
                (
                    *LOCK,
                    "curl_setup_preadv",
                    "curl_co_preadv",
                    "bdrv_co_preadv",
                    "aio_co_enter",
                    "curl_multi_do",
                    *MAIN,
                ),
            ),
        ),
    ),
    (
        "worker-thread-waits",
        "control",
        (("vnc_worker", (*LOCK, "vnc_lock_output", "vnc_worker_thread_loop", *STARTED)), VNC_WAITS),
    ),
)

# Since glibc 2.41, on macOS, and of musl.
CANCEL = ("__syscall_cancel_arch", "__internal_syscall_cancel", "__syscall_cancel")
IN_2_41 = (*CANCEL, *POLL)
IN_MACOS = ("__psynch_mutexwait", "_pthread_mutex_firstfit_lock_wait", "qemu_mutex_lock_impl")
IN_MUSL = ("__syscall_cp_c", "__timedwait", "__pthread_mutex_timedlock", "qemu_mutex_lock_impl")
POLLS = (*POLL, "aio_wait_bh_oneshot", "virtio_scsi_dataplane_stop", *DISPATCH)
WANTS = ("qemu_rec_mutex_lock_impl", "aio_context_acquire", "aio_co_wake", "aio_poll", "iothread_run", *STARTED)

# A distribution's build has no names for static functions.
STRIPPED = ("__ppoll", "qemu_poll_ns", "??", "aio_poll", "??")

ELSEWHERE: tuple[tuple[str, str, tuple[Stack, ...]], ...] = (
    ("job-end-drains", "block", (("kvm", (*IN_2_41, "bdrv_drained_begin", "backup_clean", *DISPATCH)),)),
    (
        "job-end-drains",
        "block",
        (("kvm", (*POLL, "bdrv_drained_begin", "mirror_flush", "mirror_run", "job_co_entry")),),
    ),
    ("job-end-drains", "block", (("kvm", (*STRIPPED, "bdrv_drained_begin", "??", "job_cancel_sync", *DISPATCH)),)),
    ("poll-inside-poll", "block", (("IO iot0", (*STRIPPED, "blk_drain", "aio_poll", "??", "start_thread")),)),
    ("context-held-over-poll", "block", (("IO iot0", (*IN_MACOS, *WANTS)), ("kvm", POLLS))),
    ("context-held-over-poll", "block", (("IO iot0", (*IN_MUSL, *WANTS)), ("kvm", POLLS))),
    (
        "lock-order-with-bql",
        "control",
        (
            ("IO iot0", ("__kernel_vsyscall", *LOCK_BQL, "virtio_x", "aio_poll", "iothread_run", *STARTED)),
            ("kvm", ("__libc_do_syscall", *LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire", *DISPATCH)),
        ),
    ),
    ("host-call-waits", "host", (("kvm", ("ioctl", "drmIoctl", "virgl_renderer_poll", "virtio_gpu_x", *DISPATCH)),)),
    (
        "thread-join-waits",
        "control",
        (("kvm", ("wait4", "launch_script", "net_init_tap", "qmp_netdev_add", *DISPATCH)),),
    ),
)

ANOTHER_MATTER: tuple[tuple[Stack, ...], ...] = (
    (("kvm", (*COND, "some_library_waits", "some_function", *DISPATCH)),),
    (("kvm", ("nanosleep", "usleep", "some_function", *DISPATCH)),),
    (("IO iot0", ("syscall", "some_function", "iothread_run", *STARTED)),),
    (ASKS_SPICE,),  # nobody waits for it
    (("CPU 0/TCG", (*LOCK_BQL, "prepare_mmio_access", "tcg_x", *STARTED)), WANTS_REPLAY),
    (("kvm", (*LOCK, "curl_setup_preadv", "curl_co_preadv", "bdrv_co_preadv", "coroutine_trampoline")),),
    (("vnc_worker", (*COND, "vnc_worker_thread_loop", *STARTED)), VNC_WAITS),
    (
        ("return path", ("recvmsg", "qemu_fill_buffer", "source_return_path_thread", *STARTED)),
        ("kvm", pastes.IDLE_MAIN),
    ),
    (
        ("mig/dst/preempt", ("sem_wait", "qemu_sem_wait", "postcopy_preempt_thread", *STARTED)),
        ("mig/dst/listen", ("syscall", "qemu_futex_wait", "qemu_event_wait", "postcopy_ram_listen_thread", *STARTED)),
        ("kvm", pastes.IDLE_MAIN),
    ),
    (("qemu-img", (*POLL, "run_block_job", "img_commit", "main")),),
    (
        ("IO iot0", (*IN_2_41, "iothread_run", *STARTED)),
        ("kvm", (*CANCEL, *pastes.IDLE_MAIN)),
    ),
    (("IO iot0", (*STRIPPED, "??", "start_thread", "clone3")), ("kvm", pastes.IDLE_MAIN)),
    (("kvm", ("__ppoll", "??", "??", "??", "aio_poll", "??", "blk_drain", *DISPATCH)),),  # what it runs may wait
    (("CPU 0/HVF", (*IN_MACOS, "bql_lock_impl", "hvf_vcpu_exec", *STARTED)),),
    (("worker", ("wait4", "some_library", *STARTED)), ("kvm", pastes.IDLE_MAIN)),
)


@pytest.mark.parametrize(("signature", "where", "stacks"), [*TOLD, *ELSEWHERE])
def test_a_family_of_functions_tells_what_is_waited_for(
    signature: str, where: str, stacks: tuple[Stack, ...], tmp_path: Path
) -> None:
    found = diagnosis_of(pastes.dump(*stacks), tmp_path)
    assert (found.signature, found.where, found.confidence) == (signature, where, "consistent")


@pytest.mark.parametrize("stacks", ANOTHER_MATTER)
def test_what_only_looks_like_it_is_told_nothing_of(stacks: tuple[Stack, ...], tmp_path: Path) -> None:
    assert diagnosis_of(pastes.dump(*stacks), tmp_path).where == "unknown"


def test_a_main_loop_at_rest_is_one_by_any_c_library_s_names(tmp_path: Path) -> None:
    assert (
        "No thread that was shown is stuck"
        in diagnosis_of(pastes.dump(("kvm", (*CANCEL, *pastes.IDLE_MAIN))), tmp_path).headline
    )


def test_a_drain_that_waits_for_a_parked_request_is_what_that_waits_for(tmp_path: Path) -> None:
    drain = pastes.dump(
        ("live_migration", (*POLL, "bdrv_drained_begin", "bdrv_inactivate_all", "migration_completion", *STARTED)),
        MAIN_WANTS_BQL,
    )
    parked = pastes.coroutine(0x7F0FBF018000, (*NBD_PARKED, "coroutine_trampoline"))
    assert diagnosis_of(drain + parked, tmp_path / "parked").where == "peer"
    assert diagnosis_of(drain, tmp_path / "alone").where == "block"


def test_where_the_main_thread_rests_the_place_that_is_named_is_another_s(tmp_path: Path) -> None:
    stuck = ("IO iot0", (*POLL, "some_wait", "virtio_x", "aio_poll", "iothread_run", *STARTED))
    found = diagnosis_of(pastes.dump(stuck, ("kvm", pastes.IDLE_MAIN)), tmp_path)
    assert "some_wait" in found.headline


def test_a_main_loop_that_is_shown_elsewhere_later_is_not_called_dead(tmp_path: Path) -> None:
    first = pastes.dump(("kvm", (*POLL, "bdrv_graph_wrlock", "blk_remove_bs", *DISPATCH)))
    assert "dead" in diagnosis_of(first.replace("bdrv_graph_wrlock", "quorum_x"), tmp_path / "once").headline
    found = diagnosis_of(first + pastes.dump(("kvm", pastes.IDLE_MAIN)), tmp_path / "moved")
    assert found.where == "unknown"
    assert "dead" not in found.headline
