"""Every family of wedges on evidence built from documented fields: those too that cannot be met on a QEMU here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e
from support.built import families as cases

TO_BLOCK = ("", "bdrv_co_pwritev_part", "", "blk_co_pwritev", "", "coroutine_trampoline")

CASES: dict[str, tuple[Callable[[], e.Case], str, str]] = {
    "nfs": (lambda: cases.in_kernel("rpc_wait_bit_killable", "nfs_wait_on_request"), "peer", "host-nfs-wait"),
    "fuse": (lambda: cases.in_kernel("request_wait_answer", "fuse_simple_request"), "peer", "fuse-daemon-silent"),
    "krbd": (lambda: cases.in_kernel("ceph_osdc_wait_request", "ceph_sync_write"), "peer", "host-ceph-wait"),
    "smb": (lambda: cases.in_kernel("wait_for_response", "cifs_strict_writev"), "peer", "host-smb-wait"),
    "zfs": (lambda: cases.in_kernel("cv_wait_common", "txg_wait_synced", "zil_commit"), "host", "host-zfs-wait"),
    "writeback": (
        lambda: cases.in_kernel("io_schedule_timeout", "balance_dirty_pages", "generic_perform_write"),
        "host",
        "host-writeback-throttled",
    ),
    "dm": (lambda: cases.in_kernel("__bio_queue_enter", "dm_submit_bio"), "host", "host-dm-suspended"),
    "block": (lambda: cases.in_kernel("io_schedule", "blk_mq_get_tag", "submit_bio"), "host", "host-block-wait"),
    "ext4": (lambda: cases.in_kernel("jbd2_log_wait_commit", "ext4_sync_file"), "host", "host-block-wait"),
    "reclaim": (lambda: cases.memory_wait("shrink_lruvec", "try_to_free_pages"), "host", "memory-reclaim"),
    "memory.high": (lambda: cases.memory_wait("mem_cgroup_handle_over_high"), "host", "memory-reclaim"),
    "postcopy": (lambda: cases.memory_wait("handle_userfault"), "migration", "postcopy-page-wait"),
    "mmap_lock": (
        lambda: cases.memory_wait("rwsem_down_read_slowpath", "do_user_addr_fault"),
        "host",
        "mmap-lock-held",
    ),
    "rbd": (lambda: cases.parked_in(*e.YIELD, "qemu_rbd_start_co", *TO_BLOCK, node="rbd"), "peer", "rbd-silent"),
    "rbd, stripped module": (
        lambda: cases.parked_in(*e.YIELD, "@/usr/lib/qemu/block-rbd.so", *TO_BLOCK, node="rbd"),
        "peer",
        "rbd-silent",
    ),
    "iscsi": (
        lambda: cases.parked_in(*e.YIELD, "iscsi_co_wait_for_task", *TO_BLOCK, node="iscsi"),
        "peer",
        "iscsi-silent",
    ),
    "libnfs": (lambda: cases.parked_in(*e.YIELD, "nfs_co_preadv", *TO_BLOCK, node="nfs"), "peer", "libnfs-silent"),
    "curl": (lambda: cases.parked_in(*e.YIELD, "curl_co_preadv", *TO_BLOCK), "peer", "remote-image-silent"),
    "nbd, one slot free": (lambda: cases.parked_in(*e.QUEUE, "nbd_co_send_request", *TO_BLOCK), "peer", "nbd-silent"),
    "vhost-user": (lambda: cases.talking("vhost_user_read_header", "vhost_user_read"), "peer", "vhost-user-silent"),
    "a blocking library": (cases.blocking_library, "peer", "peer-blocks-thread"),
    "swtpm": (lambda: cases.talking("tpm_emulator_ctrlcmd"), "peer", "swtpm-silent"),
    "not reaped": (lambda: cases.aio_ring(head=3, tail=6), "aio", "aio-completed-not-reaped"),
    "in the kernel": (lambda: cases.aio_ring(head=6, tail=6), "host", "aio-in-kernel"),
    "not submitted": (cases.uring_unsent, "aio", "aio-never-submitted"),
    "workers idle": (lambda: cases.parked_in(*e.WORKERS), "aio", "aio-done-not-completed"),
    "serialising": (
        lambda: cases.parked_in(*e.QUEUE, "bdrv_make_request_serialising", *TO_BLOCK),
        "block",
        "serialising-wait",
    ),
    "flushes": (lambda: cases.parked_in(*e.QUEUE, "bdrv_co_flush", *TO_BLOCK), "block", "flush-queue-wait"),
    "qcow2": (
        lambda: cases.parked_in(*e.MUTEX, "qcow2_alloc_host_offset", *TO_BLOCK, node="qcow2"),
        "block",
        "qcow2-lock-wait",
    ),
    "blkdebug": (
        lambda: cases.parked_in(*e.YIELD, "", "bdrv_debug_event", *TO_BLOCK, node="blkdebug"),
        "block",
        "blkdebug-suspended",
    ),
    "quiesce leak": (cases.quiesced, "block", "quiesce-leak"),
    "graph lock": (
        lambda: cases.nested_poll("bdrv_drained_begin", (*e.QUEUE, "bdrv_graph_co_rdlock", *TO_BLOCK)),
        "block",
        "graph-lock-deadlock",
    ),
    "graph lock, wake-up missed": (lambda: cases.nested_poll("bdrv_graph_wrlock"), "block", "graph-lock-deadlock"),
    "IDE trim": (
        lambda: cases.nested_poll("blk_drain", (*e.QUEUE, "blk_wait_while_drained", "blk_co_pdiscard")),
        "device",
        "ide-trim-drain-deadlock",
    ),
    "copy before write": (
        lambda: cases.parked_in(*e.QUEUE, "reqlist_wait_one", "block_copy", "cbw_do_copy_before_write", *TO_BLOCK),
        "job",
        "backup-holds-writes",
    ),
    "Proxmox backup": (
        lambda: cases.parked_in(*e.YIELD, "proxmox_backup_co_write_data", "pvebackup_co_dump_pbs_cb"),
        "job",
        "pve-backup-stalled",
    ),
    "job": (cases.job_stalled, "job", "job-stalled"),
    "ABBA": (cases.ring_of_locks, "control", "lock-cycle"),
    "TMF": (lambda: cases.own_lock("scsi_req_dequeue", "scsi_req_cancel_async"), "device", "virtio-scsi-tmf-deadlock"),
    "own mutex": (lambda: cases.own_lock("vnc_lock_output"), "control", "mutex-self-deadlock"),
    "LSI, counter": (lambda: cases.lsi(reentrancy=9), "device", "lsi-reentrancy-leak"),
    "LSI, reselection": (lambda: cases.lsi(pending=512), "device", "lsi-reselect-lost"),
    "kicks off": (lambda: cases.virtqueue(notification=False), "device", "virtqueue-notify-off"),
    "kick lost": (lambda: cases.virtqueue(host_fd=30), "device", "virtqueue-kick-lost"),
    "interrupt lost": (lambda: cases.virtqueue(guest_fd=31), "guest", "virtqueue-interrupt-lost"),
    "throttle timer lost": (cases.lost_timer, "throttle", "throttle-lost-timer"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_wedge_from_documented_fields_is_told_for_what_it_is(name: str) -> None:
    build, where, signature = CASES[name]
    found = diagnose(gather_facts(build().bundle()))
    assert (found.where, found.signature) == (where, signature), found.headline
    assert found.cites or signature == "unknown"


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_wedge_that_went_on_by_the_second_look_is_no_wedge(name: str) -> None:
    build, _, signature = CASES[name]
    case = build()
    if not case.coroutines or case.main_loop is not None or signature == "blkdebug-suspended":
        pytest.skip("its mechanism is not one that passes")
    case.coroutines = [type(each)(**{**_fields(each), "since_first": "gone"}) for each in case.coroutines]
    for task in case.tasks:
        task.switches, task.cpu_ns = 500, e.SECOND // 10
    case.rings = []
    case.heap = case.heap_again = None
    found = diagnose(gather_facts(case.bundle()))
    assert found.where in {"none", "unknown"}, found.headline


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]  # a Struct


def test_a_blocking_call_names_the_disk_that_it_serves_and_one_that_goes_on_is_none() -> None:
    found = diagnose(gather_facts(cases.blocking_library().bundle()))
    assert found.objects[:3] == ("vd0", f"the main thread {e.PID}", "192.0.2.7:22")
    assert found.confidence == "likely"  # nothing says that the server is not merely slow
    again = diagnose(gather_facts(cases.blocking_library(wakes=True).bundle()))
    assert (again.signature, again.confidence) == ("peer-blocks-thread", "likely")
    went_on = diagnose(gather_facts(cases.blocking_library(goes_on=True).bundle()))
    assert went_on.signature != "peer-blocks-thread", went_on.headline
