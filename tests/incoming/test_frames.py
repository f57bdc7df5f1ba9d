"""Frames alone decide what they can: each mechanism by its least stack, and its healthy twin by none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.pastes import DISPATCH, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED

Stack = tuple[str, Sequence[str]]

CONTEXT = (*LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire")
JOB = ("block_job_remove_all_bdrv", "job_exit", *DISPATCH)
MAIN_WANTS_BQL = ("qemu-system-x86", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN))
VCPU_WANTS_BQL = (
    "CPU 0/KVM",
    (*LOCK_BQL, "prepare_mmio_access", "flatview_write", "address_space_rw", "kvm_cpu_exec", *STARTED),
)
IDLE = ("qemu-system-x86", pastes.IDLE_MAIN)
SEM = ("__futex_abstimed_wait_common64", "___pthread_cond_wait", "qemu_cond_wait_impl", "qemu_sem_wait")
EVENT = ("syscall", "qemu_futex_wait", "qemu_event_wait")

MIRROR_ENDS = ("nbd_teardown_connection", "bdrv_close", "block_job_remove_all_bdrv", "mirror_exit")

WEDGES: tuple[tuple[str, str, tuple[Stack, ...]], ...] = (
    (
        "graph-lock-against-context",
        "block",
        (
            ("IO iot0", (*CONTEXT, "aio_co_wake", "laio_completion", "aio_poll", "iothread_run", *STARTED)),
            ("kvm", (*POLL, "bdrv_graph_wrlock", *JOB)),
        ),
    ),
    (
        "graph-lock-against-context",
        "block",
        (
            ("IO iot0", (*POLL, "bdrv_poll_co", "virtio_scsi_ctx_check", "aio_poll", "iothread_run", *STARTED)),
            ("kvm", (*CONTEXT, "bdrv_drain_all_end", "bdrv_graph_wrlock", *JOB)),
        ),
    ),
    ("job-end-nested", "block", (("kvm", (*POLL, *MIRROR_ENDS, "aio_bh_call", "aio_poll", *MIRROR_ENDS, *DISPATCH)),)),
    (
        "poll-inside-poll",
        "block",
        (
            (
                "kvm",
                (
                    *POLL,
                    "blk_drain",
                    "mirror_exit_common",
                    "job_exit",
                    "aio_bh_poll",
                    "aio_poll",
                    "bdrv_flush",
                    "bdrv_close",
                    *DISPATCH,
                ),
            ),
        ),
    ),
    (
        "job-end-drains",
        "block",
        (VCPU_WANTS_BQL, ("kvm", (*POLL, "bdrv_drained_begin", "bdrv_backup_top_drop", "backup_clean", *DISPATCH))),
    ),
    (
        "job-end-drains",
        "block",
        (
            (
                "kvm",
                (
                    "bdrv_drain_recurse",
                    "bdrv_drained_begin",
                    "blk_drain",
                    "mirror_drain",
                    "virtio_pci_reset",
                    *DISPATCH,
                ),
            ),
        ),
    ),
    (
        "ide-cancel-drains",
        "device",
        (("CPU 0/KVM", (*POLL, "blk_drain", "ide_cancel_dma_sync", "bmdma_cmd_writeb", *MMIO)), MAIN_WANTS_BQL),
    ),
    (
        "lock-taken-twice",
        "control",
        (
            (
                "kvm",
                (
                    *LOCK,
                    "monitor_qapi_event_queue",
                    "qapi_event_send_x",
                    "monitor_data_destroy",
                    "monitor_cleanup",
                    "main",
                ),
            ),
        ),
    ),
    (
        "lock-taken-twice",
        "control",
        (
            (
                "kvm",
                (
                    "__lll_lock_wait_private",
                    "malloc",
                    "g_malloc",
                    "sig_f",
                    "<signal handler called>",
                    "_int_malloc",
                    "malloc",
                    *DISPATCH,
                ),
            ),
        ),
    ),
    (
        "rcu-readers-wait",
        "control",
        (
            (
                "CPU 0/KVM",
                (
                    *EVENT,
                    "drain_call_rcu",
                    "qmp_device_add",
                    "aio_bh_poll",
                    "aio_poll",
                    "blk_pwrite",
                    "pflash_write",
                    *MMIO,
                ),
            ),
            MAIN_WANTS_BQL,
        ),
    ),
    (
        "thread-join-waits",
        "migration",
        (
            ("COLO incoming", (*LOCK_BQL, "colo_process_incoming_thread", *STARTED)),
            (
                "kvm",
                ("__pthread_clockjoin_ex", "qemu_thread_join", "process_incoming_migration_co", "coroutine_trampoline"),
            ),
        ),
    ),
    (
        "thread-join-waits",
        "control",
        (
            ("IO mon_iothread", ("poll", "g_main_loop_run", "iothread_run", *STARTED)),
            ("kvm", ("pthread_join", "qemu_thread_join", "iothread_stop", "monitor_cleanup", "main")),
        ),
    ),
    (
        "lock-order-with-bql",
        "control",
        (
            ("IO iot0", (*LOCK_BQL, "virtio_blk_handle_x", "aio_poll", "iothread_run", *STARTED)),
            ("kvm", (*CONTEXT, "qmp_block_resize", *DISPATCH)),
        ),
    ),
    (
        "migration-thread-waits",
        "migration",
        (
            (
                "live_migration",
                (
                    *SEM,
                    "multifd_send_sync_main",
                    "ram_save_setup",
                    "qemu_savevm_state_setup",
                    "migration_thread",
                    *STARTED,
                ),
            ),
            MAIN_WANTS_BQL,
        ),
    ),
    (
        "migration-thread-waits",
        "migration",
        (
            (
                "kvm",
                ("recvmsg", "qio_channel_socket_readv", "gnutls_handshake", "multifd_tls_channel_connect", *DISPATCH),
            ),
        ),
    ),
    (
        "vcpu-does-not-pause",
        "control",
        (("kvm", ("___pthread_cond_wait", "qemu_cond_wait_impl", "pause_all_vcpus", "do_vm_stop", *DISPATCH)),),
    ),
    (
        "vhost-user-question",
        "peer",
        (
            (
                "CPU 0/KVM",
                (
                    "recvmsg",
                    "tcp_chr_recv",
                    "qemu_chr_fe_read_all",
                    "vhost_user_read",
                    "vhost_user_get_vring_base",
                    *MMIO,
                ),
            ),
            MAIN_WANTS_BQL,
        ),
    ),
    ("peer-question-waits", "peer", (("kvm", ("__libc_recvfrom", "sorecvfrom", "slirp_pollfds_poll", *MAIN)),)),
    (
        "peer-question-waits",
        "peer",
        (("kvm", ("pthread_cond_wait", "rbd_close", "qemu_rbd_close", "bdrv_close", *DISPATCH)),),
    ),
    (
        "host-call-waits",
        "host",
        (
            VCPU_WANTS_BQL,
            (
                "kvm",
                (
                    "lseek64",
                    "find_allocation",
                    "raw_co_block_status",
                    "mirror_run",
                    "job_co_entry",
                    "coroutine_trampoline",
                ),
            ),
        ),
    ),
    (
        "host-call-waits",
        "host",
        (
            ("worker", ("fdatasync", "handle_aiocb_flush", "worker_thread", *STARTED)),
            ("kvm", (*POLL, "bdrv_drain_all_begin", "do_vm_stop", *DISPATCH)),
        ),
    ),
    (
        "busy-with-bql",
        "device",
        (("CPU 0/KVM", ("g_hash_table_lookup", "type_get_by_name", "virtio_queue_enabled", *MMIO)), MAIN_WANTS_BQL),
    ),
    (
        "busy-with-bql",
        "job",
        (
            (
                "kvm",
                ("sha256_transform", "qcrypto_pbkdf2", "blockdev_create_run", "job_co_entry", "coroutine_trampoline"),
            ),
        ),
    ),
    (
        "chardev-write-waits",
        "control",
        (
            (
                "CPU 0/KVM",
                ("clock_nanosleep", "g_usleep", "qemu_chr_write_buffer", "qemu_chr_fe_write_all", "serial_xmit", *MMIO),
            ),
            MAIN_WANTS_BQL,
        ),
    ),
)


@pytest.mark.parametrize(("signature", "where", "stacks"), WEDGES)
def test_a_mechanism_is_told_by_its_frames_and_is_no_more_than_consistent(
    signature: str, where: str, stacks: tuple[Stack, ...], tmp_path: Path
) -> None:
    found = diagnosis_of(pastes.dump(*stacks), tmp_path)
    assert (found.signature, found.where, found.confidence) == (signature, where, "consistent")
    assert found.cites
    assert any("Next time" in each for each in found.next_steps)


@pytest.mark.parametrize(
    "stacks",
    [
        (
            ("call_rcu", (*EVENT, "call_rcu_thread", *STARTED)),
            ("CPU 0/KVM", ("ioctl", "kvm_vcpu_ioctl", "kvm_cpu_exec", "kvm_vcpu_thread_fn", *STARTED)),
            IDLE,
        ),
        (
            ("worker", (*SEM, "worker_thread", *STARTED)),
            ("IO mon_iothread", ("poll", "g_main_context_poll", "g_main_loop_run", "iothread_run", *STARTED)),
            IDLE,
        ),
        (
            ("IO iot0", (*POLL, "iothread_run", *STARTED)),
            (
                "CPU 0/KVM",
                ("___pthread_cond_wait", "qemu_cond_wait_impl", "qemu_wait_io_event", "kvm_vcpu_thread_fn", *STARTED),
            ),
            IDLE,
        ),
        (("multifdsend_0", (*SEM, "multifd_send_thread", *STARTED)), IDLE),
        (("worker", ("pwrite64", "handle_aiocb_rw", "worker_thread", *STARTED)), IDLE),
    ],
)
def test_threads_that_rest_show_nothing_and_are_not_called_healthy(stacks: tuple[Stack, ...], tmp_path: Path) -> None:
    found = diagnosis_of(pastes.dump(*stacks), tmp_path)
    assert (found.where, found.signature) == ("unknown", "unknown")
    assert "rests" in found.headline
    assert found.ruled_out == ()  # what was not pasted may yet be in the process


def test_a_drain_alone_names_its_place_and_not_its_cause(tmp_path: Path) -> None:
    found = diagnosis_of(pastes.dump(("kvm", (*POLL, "bdrv_drained_begin", "quorum_del_child", *DISPATCH))), tmp_path)
    assert found.where == "unknown"
    assert "bdrv_drained_begin" in found.headline


def test_what_moved_between_two_looks_is_not_stuck(tmp_path: Path) -> None:
    busy = (
        "kvm",
        ("sha256_transform", "qcrypto_pbkdf2", "blockdev_create_run", "job_co_entry", "coroutine_trampoline"),
    )
    first = pastes.dump(busy)
    assert diagnosis_of(first + first, tmp_path / "same").signature == "busy-with-bql"
    assert diagnosis_of(first + pastes.dump(IDLE), tmp_path / "moved").where == "unknown"


def test_a_graph_reader_and_a_drain_are_a_deadlock_when_the_coroutine_was_printed(tmp_path: Path) -> None:
    drain = pastes.dump(
        ("kvm", (*POLL, "bdrv_drained_begin", "bdrv_try_change_aio_context", "qmp_job_dismiss", *DISPATCH))
    )
    reader = pastes.coroutine(
        0x7F0FBF018000,
        (
            "qemu_coroutine_switch",
            "qemu_coroutine_yield",
            "qemu_co_queue_wait_impl",
            "bdrv_graph_co_rdlock",
            "blk_co_do_preadv_part",
            "coroutine_trampoline",
        ),
    )
    assert diagnosis_of(drain, tmp_path / "alone").where == "unknown"
    assert diagnosis_of(drain + reader, tmp_path / "both").where == "block"


def test_an_owner_that_was_printed_proves_a_lock_that_waits_for_itself(tmp_path: Path) -> None:
    text = pastes.dump(("kvm", (*LOCK, "some_function", *DISPATCH))).replace(
        "___pthread_mutex_lock ()", "___pthread_mutex_lock (mutex=0x55d7a7052fb0)"
    )
    owner = "(gdb) p *(pthread_mutex_t *) 0x55d7a7052fb0\n$1 = {__data = {__owner = 5000, __kind = 0}}\n"
    found = diagnosis_of(text + owner, tmp_path / "own")
    assert (found.signature, found.confidence) == ("mutex-self-deadlock", "proven")
    found = diagnosis_of(text + owner.replace("0x55d7a7052fb0", "0x55d7a7052000"), tmp_path / "another")
    assert found.confidence != "proven"


def test_a_ring_of_two_printed_owners_is_proven(tmp_path: Path) -> None:
    one = ("CPU 0/KVM", (*LOCK, "virtio_x", *MMIO))
    text = pastes.dump(one, ("kvm", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN)))
    text = text.replace("___pthread_mutex_lock ()", "___pthread_mutex_lock (mutex=0x7f00000000a0)", 1)
    owners = (
        "(gdb) print qemu_global_mutex\n$1 = {lock = {__data = {__owner = 5001, __kind = 0}}}\n"
        "(gdb) p *(pthread_mutex_t*)0x7f00000000a0\n$2 = {__data = {__owner = 5000, __kind = 0}}\n"
    )
    found = diagnosis_of(text + owners, tmp_path)
    assert (found.signature, found.confidence) == ("lock-cycle", "proven")


def test_a_crash_is_told_before_all_that_waited(tmp_path: Path) -> None:
    text = "Program terminated with signal SIGABRT, Aborted.\n" + pastes.dump(
        ("kvm", (*POLL, "bdrv_graph_wrlock", *JOB)), ("kvm", ("raise", "abort", "__assert_fail", *DISPATCH))
    )
    found = diagnosis_of(text, tmp_path)
    assert (found.where, found.signature, found.confidence) == ("process", "qemu-crashed", "consistent")
    assert "SIGABRT" in found.headline
    assert "__assert_fail" in found.headline
