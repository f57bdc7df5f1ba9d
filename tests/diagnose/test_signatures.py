"""The first signatures on wedges built from documented fields."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e


def diagnosis(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def test_throttled_requests_are_behind_the_timer() -> None:
    found = diagnosis(cases.throttled())
    assert (found.where, found.signature, found.confidence) == ("throttle", "throttle-timer-wait", "proven")
    assert "scsi0 (drive-scsi0)" in found.objects
    assert "15 requests" in found.headline
    assert found.cites
    assert not found.secondary


def test_limits_that_are_wide_do_not_explain_a_wait() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 15)
    case.monitor()
    case.disks(e.disk("drive-scsi0", "scsi0", bps=60_000_000, group="drive-scsi0"))
    found = diagnosis(case)
    assert (found.where, found.signature, found.confidence) == ("throttle", "throttle-stale-timer", "likely")


def test_a_silent_nbd_server_is_a_peer_and_its_process_is_named() -> None:
    found = diagnosis(cases.nbd())
    assert (found.where, found.signature, found.confidence) == ("peer", "nbd-silent", "proven")
    assert "d0" in found.objects
    assert "qemu-nbd 900" in found.objects
    assert "is stopped" in found.headline
    assert "d1" not in " ".join(found.objects)


def test_a_frozen_file_system_under_worker_threads_is_the_host() -> None:
    found = diagnosis(cases.frozen_threads())
    assert (found.where, found.signature, found.confidence) == ("host", "host-fs-frozen", "proven")
    assert any("/mnt/vm" in each for each in found.objects)
    assert "d0" in found.objects


def test_a_frozen_file_system_under_io_submit_is_the_host_and_holds_the_main_loop() -> None:
    found = diagnosis(cases.frozen_native())
    assert (found.where, found.signature) == ("host", "host-fs-frozen")
    assert "io-submit-blocks" in {each.signature for each in found.secondary}


def test_a_stopped_process_is_told_before_anything_else() -> None:
    found = diagnosis(cases.stopped())
    assert (found.where, found.signature, found.confidence) == ("process", "process-stopped", "proven")


def test_a_vm_that_is_paused_on_purpose_is_paused() -> None:
    found = diagnosis(cases.paused())
    assert (found.where, found.signature) == ("vm-state", "vm-paused")


def test_a_healthy_idle_vm_raises_no_alarm() -> None:
    found = diagnosis(cases.healthy_idle())
    assert (found.where, found.signature, found.secondary) == ("none", "healthy", ())


def test_a_healthy_busy_vm_raises_no_alarm() -> None:
    found = diagnosis(cases.healthy_busy())
    assert (found.where, found.signature, found.secondary) == ("none", "healthy", ())


def test_a_throttle_mutex_that_waits_for_itself_is_the_cause_of_the_waits_behind_it() -> None:
    found = diagnosis(cases.deadlock())
    assert (found.where, found.signature, found.confidence) == ("throttle", "throttle-lock-self-deadlock", "proven")
    assert found.secondary[0].signature == "throttle-timer-wait"
    assert found.secondary[0].because_of == "throttle-lock-self-deadlock"


def test_a_limit_that_lets_go_by_itself_is_not_the_cause_where_a_request_behind_it_hangs() -> None:
    case = e.Case()
    case.idle_threads()
    for number in range(4):
        case.thread(e.PID + 100 + number, "worker", state="D", syscall=cases.PWRITE, stack=cases.FROZEN_STACK)
    case.descriptors[9] = "/mnt/vm/disk.raw"
    case.mountinfo += "31 30 7:0 / /mnt/vm rw - ext4 /dev/loop0 rw\n"
    case.parked(e.WORKERS, 4)
    case.parked(e.THROTTLED_LEGACY, 15)
    case.monitor()
    case.disks(e.disk("d0", file="/mnt/vm/disk.raw", bps=100, group="d0"))
    found = diagnosis(case)
    assert (found.where, found.signature) == ("host", "host-fs-frozen")
    assert "throttle-timer-wait" in {each.signature for each in found.secondary}


def test_a_file_that_no_node_is_known_by_leads_to_the_disk_through_its_requests() -> None:
    case = cases.frozen_threads()
    case.descriptors[9] = "/mnt/vm/data.raw"  # a qcow2 image's data file: query-block does not name it
    found = diagnosis(case)
    assert found.signature == "host-fs-frozen"
    assert "d0" in found.objects


def test_a_mount_is_known_by_the_descriptors_device_where_a_chroot_tells_its_path_from_another_root() -> None:
    case = cases.frozen_threads()
    case.descriptors[9] = "/jail/mnt/vm/disk.raw"
    case.info[9] = "pos:\t0\nflags:\t02\nmnt_id:\t31\nino:\t12\n"
    found = diagnosis(case)
    assert found.signature == "host-fs-frozen"
    assert "file system /mnt/vm (ext4 on /dev/loop0)" in found.objects


@pytest.mark.parametrize(
    ("syscall", "alive", "told"),
    [
        ("230 0x0 0x0 0x7f0000000000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000", True, True),
        ("running", False, True),
        ("running", True, False),
    ],
    ids=["seen asleep between two tries", "met between two sleeps, the main loop dead", "met while it finds room"],
)
def test_a_console_without_a_reader_is_told_by_its_sleep_or_by_the_lock_it_keeps(
    syscall: str, *, alive: bool, told: bool
) -> None:
    case = e.Case()
    case.idle_threads()
    writer = e.PID + 60
    case.thread(
        writer,
        "CPU 1/TCG",
        state="S" if told and alive else "R",
        syscall=syscall,
        frames=("qemu_chr_write_buffer", "qemu_chr_write", "debugcon_ioport_write"),
    )
    case.locks = records.LockGraph(
        mutexes=(), others=(), cycles=(), bql_address=0x55D000003000, bql_owner=writer, bql_how_found="by symbol"
    )
    if alive:
        case.monitor()
    else:
        case.asked("(greeting)", {"QMP": {}}, outcome="greeted")
        case.asked("qmp_capabilities", None, outcome="no answer")
    found = diagnosis(case)
    assert (found.signature == "chardev-blocked") is told, found.headline
