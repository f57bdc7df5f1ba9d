"""More of what frames decide: who is said to be at fault depends on what the stack works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from support.built import pastes
from support.built.imported import diagnosis_of, facts_of
from support.built.pastes import DISPATCH, LOCK, LOCK_BQL, MAIN, MMIO, POLL, STARTED

Stack = tuple[str, Sequence[str]]

CONTEXT = (*LOCK, "qemu_rec_mutex_lock_impl", "aio_context_acquire")
COND = ("__futex_abstimed_wait_common64", "___pthread_cond_wait", "qemu_cond_wait_impl")
WANTS_BQL = ("kvm", (*LOCK_BQL, "os_host_main_loop_wait", *MAIN))
WORKER = ("worker", ("pwrite64", "handle_aiocb_rw", "worker_thread", *STARTED))
IDLE = ("kvm", pastes.IDLE_MAIN)

ANSWERS: tuple[tuple[str, str, tuple[Stack, ...]], ...] = (
    (
        "context-held-over-poll",
        "block",
        (
            ("IO iot0", (*CONTEXT, "virtio_blk_handle_vq", "aio_poll", "iothread_run", *STARTED)),
            ("kvm", (*POLL, "aio_wait_bh_oneshot", "virtio_blk_data_plane_stop", *DISPATCH)),
        ),
    ),
    ("lock-taken-twice", "throttle", (("kvm", (*LOCK, "throttle_group_restart", "x", "throttle_group_y", *DISPATCH)),)),
    ("lock-taken-twice", "device", (("kvm", (*LOCK, "scsi_req_x", "virtio_scsi_do_tmf", *DISPATCH)),)),
    (
        "lock-order-with-bql",
        "control",
        (("vnc_worker", (*LOCK_BQL, "vnc_x", *STARTED)), ("kvm", (*COND, "vnc_jobs_join", *DISPATCH))),
    ),
    ("host-call-waits", "host", (WORKER, WORKER, WORKER, WORKER, IDLE)),
    ("host-call-waits", "host", (("kvm", ("ioctl", "cdrom_is_inserted", "bdrv_is_inserted", *DISPATCH)),)),
    ("host-call-waits", "host", (("kvm", ("__libc_fcntl64", "qemu_lock_fcntl", "raw_check_lock_bytes", *DISPATCH)),)),
    ("busy-with-bql", "block", (("kvm", ("memcpy", "qcow2_check_refcounts", "qmp_x", *DISPATCH)),)),
    ("busy-with-bql", "device", (("kvm", ("ehci_advance_state", "ehci_work_bh", *DISPATCH)),)),
    ("busy-with-bql", "control", (("kvm", ("memcpy", "some_bottom_half", *DISPATCH)),)),
    (
        "thread-join-waits",
        "migration",
        (("kvm", ("pthread_join", "qemu_thread_join", "multifd_save_cleanup", *DISPATCH)),),
    ),
    (
        "peer-question-waits",
        "peer",
        (("kvm", ("poll", "event_loop", "iscsi_full_connect_sync", "iscsi_open", *DISPATCH)),),
    ),
    (
        "peer-question-waits",
        "peer",
        (("kvm", ("poll", "g_main_loop_run", "qio_channel_wait", "nbd_receive_negotiate", *DISPATCH)),),
    ),
    ("peer-question-waits", "peer", (("CPU 0/KVM", ("read", "tpm_emulator_x", *MMIO)), WANTS_BQL)),
)


@pytest.mark.parametrize(("signature", "where", "stacks"), ANSWERS)
def test_where_it_is_follows_from_what_the_stack_works_on(
    signature: str, where: str, stacks: tuple[Stack, ...], tmp_path: Path
) -> None:
    found = diagnosis_of(pastes.dump(*stacks), tmp_path)
    assert (found.signature, found.where, found.confidence) == (signature, where, "consistent")


@pytest.mark.parametrize(
    "stacks",
    [
        (("live_migration", (*COND, "qemu_sem_timedwait", "migration_rate_limit", "migration_thread", *STARTED)), IDLE),
        (("multifdrecv_0", ("recvmsg", "qio_channel_readv_all", "multifd_recv_thread", *STARTED)), IDLE),
        (WORKER, WORKER, IDLE),
        (("IO iot0", ("io_uring_enter", "fdmon_io_uring_wait", "aio_poll", "iothread_run", *STARTED)), IDLE),
        (("IO iot0", ("read", "event_notifier_test_and_clear", "aio_poll", "iothread_run", *STARTED)), IDLE),
        (
            ("live_migration", ("memcpy", "ram_save_iterate", "migration_thread", *STARTED)),
            ("kvm", (*POLL, "blk_drain", "qmp_x", *DISPATCH)),
        ),
        (("kvm", ("accept4", "tcp_chr_wait_x", *DISPATCH)),),
        (("kvm", ("read", "dispatcher_send_message", "red_x", *DISPATCH)),),
        (("IO iot0", ("io_getevents", "laio_x", "aio_poll", "iothread_run", *STARTED)), IDLE),
    ],
)
def test_what_goes_on_by_itself_is_no_wedge(stacks: tuple[Stack, ...], tmp_path: Path) -> None:
    assert diagnosis_of(pastes.dump(*stacks), tmp_path).where == "unknown"


SYNCHRONIZES = ("syscall", "qemu_futex_wait", "qemu_event_wait", "synchronize_rcu")


def test_a_nameless_thread_that_waits_for_rcu_s_readers_may_only_do_its_work(tmp_path: Path) -> None:
    nameless = ("qemu-system-x86", (*SYNCHRONIZES, "", "", "start_thread", "clone3"))
    assert diagnosis_of(pastes.dump(nameless, IDLE), tmp_path / "call_rcu").where == "unknown"
    other = ("qemu-system-x86", (*SYNCHRONIZES, "memory_region_x", "", "start_thread", "clone3"))
    assert diagnosis_of(pastes.dump(other, IDLE), tmp_path / "another").signature == "rcu-readers-wait"


def test_what_waits_for_a_migration_that_reads_under_rcu_is_not_the_cause(tmp_path: Path) -> None:
    sends = ("sendmsg", "qio_channel_writev_full_all", "qemu_savevm_state_iterate", "migration_thread", *STARTED)
    other = ("CPU 0/KVM", (*SYNCHRONIZES, "memory_region_x", *MMIO[3:]))
    found = diagnosis_of(pastes.dump(("live_migration", sends), other, IDLE), tmp_path)
    assert found.where == "migration"


def test_the_backtrace_of_another_program_is_no_wedge_and_is_told(tmp_path: Path) -> None:
    other = pastes.dump(("postgres", ("__epoll_wait", "WaitEventSetWait", "PostgresMain", "ServerLoop", "main")))
    one = "#0  0x1 in f () at x.c:1\n"
    for number, text in enumerate((other, one, other.replace("__epoll_wait", "ExecScan"))):
        facts = facts_of(text, tmp_path / str(number))
        assert diagnose(facts).where == "unknown"
    opened = open_bundle(tmp_path / "0" / "bundle")
    assert any("another program's" in note for note in opened.manifest.notes)
    facts_of(pastes.dump(IDLE), tmp_path / "qemu")
    assert not any("another program's" in note for note in open_bundle(tmp_path / "qemu" / "bundle").manifest.notes)


def test_where_every_thread_rests_none_is_said_to_be_held_up(tmp_path: Path) -> None:
    vcpu = ("CPU 0/KVM", ("ioctl", "kvm_vcpu_ioctl", "kvm_cpu_exec", "kvm_vcpu_thread_fn", *STARTED))
    found = diagnosis_of(pastes.dump(vcpu, IDLE), tmp_path)
    assert found.where == "unknown"
    assert found.headline.startswith("No thread that was shown is stuck")
