"""A VM is proven healthy only where all of it is accounted for; what is left over is named."""

from __future__ import annotations

import pytest

from autopsy.bundle import layout, records
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

RECEIVING = "45 0x7 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
RECEIVES = ("unix_stream_data_wait", "unix_stream_read_generic", "__sys_recvfrom", "do_syscall_64")


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def left_over(found: Diagnosis) -> list[str]:
    return [claim.text for claim in found.chain if claim.text.startswith("Not accounted for: ")]


def test_a_vm_of_which_nothing_is_left_over_is_proven_healthy() -> None:
    found = told(cases.healthy_idle())
    assert (found.where, found.confidence, left_over(found)) == ("none", "proven", [])


@pytest.mark.parametrize("comm", ["IO iothread0", "worker"])
def test_a_thread_of_qemu_s_own_that_sleeps_where_it_does_not_rest_is_a_finding(comm: str) -> None:
    case = cases.healthy_idle()
    case.thread(e.PID + 60, comm, syscall=RECEIVING, stack=RECEIVES)
    found = told(case)
    assert found.signature == "thread-asleep"
    assert f"thread {e.PID + 60} ({comm})" in found.objects
    assert "for the other end of a socket to write" in found.headline


@pytest.mark.parametrize("comm", ["IO iothread0", "worker"])
def test_one_that_came_on_between_the_looks_is_none(comm: str) -> None:
    case = cases.healthy_idle()
    case.thread(e.PID + 60, comm, syscall=RECEIVING, stack=RECEIVES, switches=400, cpu_ns=e.SECOND // 10)
    assert (told(case).where, told(case).confidence) == ("none", "proven")


def test_a_library_s_thread_may_sleep_anywhere_but_is_named() -> None:
    case = cases.healthy_idle()
    case.thread(e.PID + 60, "libfoo", syscall=RECEIVING, stack=RECEIVES)
    found = told(case)
    assert (found.where, found.confidence) == ("none", "likely")
    assert len(left_over(found)) == 1
    assert "libfoo" in left_over(found)[0]


def with_stats(*, failed: int, failed_later: int, after: int = 100) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.monitor()
    case.disks(e.disk("d0", after=after))
    for step, number in ((layout.QUERY_STATUS, failed), (layout.SECOND_EXPOSURE, failed_later)):
        for exchange in case.exchanges[step]:
            if exchange.question == "query-blockstats":
                exchange.answer[0]["stats"]["failed_wr_operations"] = number
    return case


def test_requests_that_fail_at_once_are_told_although_nothing_waits() -> None:
    found = told(with_stats(failed=3, failed_later=90))
    assert found.signature == "requests-fail"
    assert "87 requests" in found.headline
    assert found.objects[:1] == ("d0",)


def test_requests_that_failed_long_ago_on_a_disk_that_stands_keep_it_from_being_proven() -> None:
    found = told(with_stats(failed=3, failed_later=3))
    assert (found.where, found.confidence) == ("none", "likely")
    assert "has failed 3 requests" in left_over(found)[0]


def test_a_disk_that_flows_is_forgiven_what_it_failed_once() -> None:
    found = told(with_stats(failed=3, failed_later=3, after=900))
    assert (found.where, found.confidence) == ("none", "proven")


def test_a_guest_that_burns_its_cpu_after_a_request_failed_is_told_with_that() -> None:
    case = with_stats(failed=1, failed_later=1)
    for task in case.tasks:
        if task.comm.startswith("CPU "):
            task.cpu_ns = int(5 * e.SECOND * 0.99)
    found = told(case)
    assert (found.signature, found.confidence) == ("guest-spins", "possible")
    assert any("Not accounted for: Disk d0 has failed 1 request" in each.text for each in found.chain)


def vhost_user(chardev: str, *, connected: bool) -> e.Case:
    case = cases.healthy_idle()
    case.command_line = ("-chardev", "socket,id=c0,path=/run/vu", "-device", "vhost-user-blk-pci,id=vd9,chardev=c0")
    case.asked("query-chardev", [{"label": "c0", "filename": chardev, "frontend-open": True}])
    if connected:
        end = records.SocketEnd(
            fd=9,
            inode=9,
            family="unix",
            state="ESTAB",
            remote="/run/vu",
            receive_queue=0,
            send_queue=0,
            peer_pids=(77,),
        )
        case.ends.append(end)
        case.peer_sections += [
            Section("peer/77/comm", b"spdk\n"),
            Section("peer/77/status", b"Name:\tspdk\nState:\tS (sleeping)\n"),
        ]
    return case


def test_a_vhost_user_back_end_that_qemu_calls_disconnected_is_gone() -> None:
    found = told(vhost_user("disconnected:unix:/run/vu", connected=False))
    assert (found.where, found.signature, found.confidence) == ("peer", "vhost-user-silent", "proven")
    assert "vd9" in found.objects


def test_whether_a_vhost_user_back_end_answers_the_guest_nobody_saw_and_that_is_named() -> None:
    found = told(vhost_user("unix:/run/vu", connected=True))
    assert (found.where, found.confidence) == ("none", "likely")
    assert "vd9" in left_over(found)[0]


def test_a_back_end_of_which_nothing_is_seen_is_named() -> None:
    found = told(vhost_user("unix:/run/vu", connected=False))
    assert (found.where, found.confidence) == ("none", "likely")
    assert "/run/vu" in left_over(found)[0]


def unmonitored(why: str = "this VM has no monitor") -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.outcomes = dict.fromkeys((layout.QUERY_STATUS, layout.QUERY_BLOCK, layout.THROTTLE_GROUPS), ("Skipped", why))
    case.main_loop = records.MainLoop(tid=e.PID, state="idle", why="it sleeps in ppoll right under main_loop_wait")
    case.command_line = ("-drive", "file=/d.raw,if=none,id=d0", "-device", "virtio-blk-pci,id=vd0,drive=d0")
    return case


def test_a_vm_that_nobody_could_ask_looks_healthy_by_its_threads() -> None:
    found = told(unmonitored())
    assert (found.where, found.confidence) == ("none", "likely")
    assert found.headline.endswith("could not be asked: this VM has no monitor")


def test_a_vm_whose_monitor_keeps_silent_does_not() -> None:
    case = unmonitored()
    case.asked("(greeting)", None, outcome="silent")
    assert told(case).where != "none"


def test_one_whose_vcpus_are_not_in_the_guest_may_be_paused() -> None:
    case = unmonitored()
    for task in case.tasks:
        if task.comm.startswith("CPU"):
            task.syscall, task.stack = e.IDLE_WORKER, e.IDLE_STACK
    assert told(case).where == "unknown"


def limited(limit: str) -> e.Case:
    case = unmonitored()
    case.parked(e.THROTTLED_LEGACY, 3)
    case.command_line = (
        *("-drive", f"file=/d.raw,if=none,id=d0,throttling.{limit}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=d0"),
    )
    return case


def test_requests_at_a_limit_that_lets_nothing_go_are_told_without_a_monitor() -> None:
    assert told(limited("bps-total=1")).signature == "throttle-timer-wait"


@pytest.mark.parametrize("limit", ["bps-total=10000", "iops-write=1"])
def test_where_nobody_counted_a_limit_that_lets_some_go_is_no_cause(limit: str) -> None:
    assert (told(limited(limit)).where, told(limited(limit)).confidence) == ("unknown", "possible")


def test_a_server_that_is_stopped_before_anything_is_asked_of_it_is_told_and_nothing_is_proven() -> None:
    found = told(cases.nbd(waits=False))
    assert (found.where, found.signature, found.confidence) == ("none", "healthy", "likely")
    assert found.headline.startswith("Nothing is stuck yet, but the server of disk d0")
    assert "its process 900 (qemu-nbd) is stopped" in found.headline


def test_a_server_that_waits_for_work_is_no_objection() -> None:
    found = told(cases.nbd(waits=False, state="S (sleeping)"))
    assert (found.where, found.confidence) == ("none", "proven")


def test_a_vm_whose_disks_nobody_asked_for_is_not_proven_healthy() -> None:
    case = cases.healthy_idle()
    for step in case.exchanges.values():
        step[:] = [each for each in step if each.question != "query-block"]
    found = told(case)
    assert (found.where, found.confidence) == ("none", "likely")
    assert "QEMU was not asked for its disks" in left_over(found)[0]
