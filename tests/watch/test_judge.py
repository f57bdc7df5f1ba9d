"""What a VM's samples add up to, and what only looks like a stall."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from autopsy.watch.coroutine_look import CoroutineLook, ParkedCoroutine
from autopsy.watch.judge import JudgedSample, VmJudge
from autopsy.watch.model import StallKind, WatchState
from autopsy.watch.request_shape import Shape
from autopsy.watch.sample import Halted, StillThread, VmSample
from autopsy.watch.signs.host_devices import HostRequests
from autopsy.watch.tokens import SECOND

STUCK = ParkedCoroutine(5, b"s", Shape.TRACKED, 3)
BEGAN = 1000 * SECOND


def sample(second: float, *parked: ParkedCoroutine, **more: object) -> VmSample:
    """Make a sample of a VM in which nothing is wrong, but for what is told."""
    at = BEGAN + int(second * SECOND)
    look = CoroutineLook(clear=True, parked=(ParkedCoroutine(1, b"d", Shape.OTHER), *parked))
    return replace(VmSample(at_ns=at, size=1, threads=4, ran=2, look=look), **more)  # type: ignore[arg-type]  # by name


def main_thread(wchan: str, seconds: float, state: str = "S") -> StillThread:
    return StillThread(1, "qemu-system-x86", state, int(seconds * SECOND), wchan)


def vcpu(seconds: float, *, mutex: int = 0, wchan: str = "futex_do_wait", comm: str = "CPU 0/KVM") -> StillThread:
    return StillThread(2, comm, "S", int(seconds * SECOND), wchan, mutex)


def judged(*samples: VmSample) -> JudgedSample:
    """Judge one sample after the other, and return what the last one adds up to."""
    judge = VmJudge()
    return [judge.judge(each) for each in samples][-1]


def kind(result: JudgedSample) -> StallKind | None:
    return result.stands.kind if result.stands else None


def seconds(result: JudgedSample) -> float:
    return result.stands.age_ns / SECOND if result.stands else 0


def over(length: int, *parked: ParkedCoroutine, **more: object) -> list[VmSample]:
    return [sample(each, *parked, **more) for each in range(length)]


def test_a_vm_all_of_whose_requests_stand_has_a_stalled_disk() -> None:
    found = judged(sample(-1), *over(10, STUCK))
    assert (kind(found), found.state) == (StallKind.DISK, WatchState.WATCHED)
    assert seconds(found) == pytest.approx(10, abs=0.1)
    assert found.stands is not None
    assert found.stands.began_ns == BEGAN


def test_a_request_that_stands_while_others_move_is_told_as_one() -> None:
    rounds = [sample(each, STUCK, ParkedCoroutine(9, bytes([each]), Shape.TRACKED, 4)) for each in range(10)]
    assert kind(judged(*rounds)) is StallKind.REQUEST


def test_an_idle_vm_is_well() -> None:
    at_rest = [sample(each, ran=0, main=main_thread("do_sys_poll", each)) for each in range(20)]
    assert (kind(judged(*at_rest)), judged(*at_rest).state) == (None, WatchState.WATCHED)


@pytest.mark.parametrize(("wchan", "state"), [("futex_do_wait", "S"), ("wait_for_connect", "S"), ("io_schedule", "D")])
def test_a_main_loop_that_waits_elsewhere_than_for_events_stands(wchan: str, state: str) -> None:
    rounds = [sample(each, main=main_thread(wchan, each, state)) for each in range(1, 9)]
    found = judged(sample(0), *rounds)
    assert (kind(found), seconds(found)) == (StallKind.MAIN_LOOP, 8)


@pytest.mark.parametrize(
    "wchan", ["do_sys_poll", "poll_schedule_timeout.constprop.0", "do_epoll_wait", "", "unix_accept"]
)
def test_a_main_loop_that_waits_for_events_or_a_client_is_well(wchan: str) -> None:
    rounds = [sample(each, main=main_thread(wchan, each)) for each in range(1, 9)]
    assert kind(judged(sample(0), *rounds)) is None


def test_a_vm_that_starts_may_take_its_time_before_its_main_loop_first_comes_round() -> None:
    rounds = [sample(each, main=main_thread("futex_do_wait", each)) for each in range(60)]
    assert kind(judged(*rounds)) is None


def test_vcpus_that_all_wait_for_one_lock_are_kept_from_running() -> None:
    held_off = [sample(each, vcpus=(vcpu(each, mutex=0x7F00),), vcpu_count=1) for each in range(9)]
    assert kind(judged(*held_off)) is StallKind.VCPUS


def test_a_vcpu_that_sleeps_in_a_system_call_is_kept_from_running() -> None:
    writes = [sample(each, vcpus=(vcpu(each, wchan="anon_pipe_write"),), vcpu_count=2) for each in range(9)]
    assert kind(judged(*writes)) is StallKind.VCPUS


def test_vcpus_that_wait_for_a_condition_are_paused() -> None:
    paused = [sample(each, vcpus=(vcpu(each),), vcpu_count=1) for each in range(9)]
    assert (kind(judged(*paused)), judged(*paused).state) == (None, WatchState.PAUSED)


def test_an_idle_vcpu_inside_of_kvm_is_not_paused() -> None:
    halts = [sample(each, vcpus=(vcpu(each, wchan="kvm_vcpu_block"),), vcpu_count=1) for each in range(9)]
    assert judged(*halts).state is WatchState.WATCHED


def test_a_thread_in_d_tells_of_a_request_that_nobody_can_count() -> None:
    asleep = [
        sample(each, asleep=(StillThread(9, "worker", "D", each * SECOND, "io_schedule"),), ran=2) for each in range(9)
    ]
    assert kind(judged(*asleep)) is StallKind.REQUEST


@pytest.mark.parametrize("halted", list(Halted))
def test_a_vm_that_is_stopped_does_not_stall(halted: Halted) -> None:
    found = judged(*over(30, STUCK, halted=halted, main=main_thread("do_signal_stop", 30, "T")))
    assert kind(found) is None
    assert found.state in {WatchState.STOPPED, WatchState.UNREADABLE}


def test_a_stop_counts_for_nothing_once_it_is_over() -> None:
    stopped = [sample(each, STUCK, halted=Halted.SIGNAL) for each in range(1, 40)]
    assert kind(judged(sample(0, STUCK), *stopped, sample(40, STUCK))) is None


def host(second: float) -> HostRequests:
    """Return what a device has in flight that has completed nothing since our first sample."""
    return HostRequests(3, int(second * SECOND))


def test_requests_above_a_device_of_the_hosts_that_completes_none_are_the_hosts() -> None:
    assert kind(judged(sample(-1), *[sample(each, STUCK, host=host(each)) for each in range(10)])) is StallKind.HOST
    late = [sample(each, STUCK, host=host(max(0, each - 4))) for each in range(10)]
    assert kind(judged(sample(-1), *late)) is StallKind.DISK  # it completed others when these stood already
    flows = [sample(each, STUCK, host=HostRequests(3)) for each in range(10)]
    assert kind(judged(sample(-1), *flows)) is StallKind.DISK


def test_a_device_that_completes_none_is_no_stall_of_a_vm_whose_requests_can_be_counted() -> None:
    well = [sample(each, host=host(each)) for each in range(30)]
    assert kind(judged(*well)) is None
    uncounted = CoroutineLook(clear=False)
    unclear = [sample(each, host=host(each), look=uncounted) for each in range(9)]
    assert (kind(judged(*unclear)), seconds(judged(*unclear)), judged(*unclear).state) == (
        StallKind.HOST,
        8,
        WatchState.UNCLEAR,
    )


def test_a_vm_that_is_given_no_processor_is_starved_not_stuck() -> None:
    found = judged(*over(30, STUCK, starved_ns=SECOND * 3 // 4))
    assert (kind(found), found.state) == (None, WatchState.STARVED)


def test_a_watch_that_did_not_come_round_counts_nothing_meanwhile() -> None:
    assert kind(judged(sample(0, STUCK), sample(1, STUCK), sample(61, STUCK))) is StallKind.DISK
    assert seconds(judged(sample(0, STUCK), sample(1, STUCK), sample(61, STUCK))) == 5


def test_a_host_that_was_suspended_counts_nothing_of_the_time_around_it_and_a_stall_after_it_counts() -> None:
    before = [sample(each, STUCK) for each in range(2)]
    slept = {"suspended_ns": 60 * SECOND}
    woken = sample(9, STUCK, **slept)  # CLOCK_MONOTONIC has gone on for as long as devices and tasks took to stop
    assert kind(judged(sample(-1), *before, woken)) is None
    assert kind(judged(sample(-1), *before, replace(woken, suspended_ns=0))) is StallKind.DISK
    after = [sample(9 + each, STUCK, **slept) for each in range(1, 9)]
    found = judged(sample(-1), *before, woken, *after)
    assert (kind(found), seconds(found)) == (StallKind.DISK, 10)  # 2 before it, 8 after


def test_the_clock_of_the_watch_stands_while_the_host_is_suspended() -> None:
    assert time.get_clock_info("monotonic").implementation == "clock_gettime(CLOCK_MONOTONIC)"


def test_a_look_that_hangs_leaves_the_vm_unreadable_and_its_threads_seen() -> None:
    rounds = [sample(each, look=None, hung=True, main=main_thread("rwsem_down_read", each, "D")) for each in range(9)]
    found = judged(*rounds)
    assert (kind(found), found.state, found.requests) == (StallKind.MAIN_LOOP, WatchState.UNREADABLE, None)


def test_the_ring_holds_what_came_before() -> None:
    judge = VmJudge()
    for each in [sample(0), *over(10, STUCK)[1:]]:
        judge.judge(each)
    assert [row.unmoved for row in judge.ring] == [0, 0, *[1] * 8]
    assert judge.ring[-1].oldest_unmoved_ms == 9000
