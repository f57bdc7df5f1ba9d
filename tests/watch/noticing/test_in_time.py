"""A stall is called one within ten seconds of its beginning, wherever between two samples that was."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from autopsy.target.identity import stat_of
from autopsy.watch import loop
from autopsy.watch.coroutine_look import CoroutineLook, ParkedCoroutine
from autopsy.watch.judge import VmJudge
from autopsy.watch.loop import Watch
from autopsy.watch.model import StallKind
from autopsy.watch.request_shape import Shape
from autopsy.watch.sample import StillThread, VmSample
from autopsy.watch.sampler import VmFiles
from autopsy.watch.stages import VmStages
from autopsy.watch.tokens import MOST_LAG_NS, SECOND

BEGAN = 1000.0
DISPATCHER = ParkedCoroutine(1, b"d", Shape.OTHER)
STUCK = ParkedCoroutine(5, b"s", Shape.TRACKED, 3)


@dataclass(slots=True)
class Moment:
    """A sample's time; a stall begins at 0. `ran` is when a thread was last seen to have run, `lag` how late."""

    at: float
    before: float
    ran: float | None = None
    lag: float = 0.0


Stall = Callable[[Moment], VmSample]


def look(*parked: ParkedCoroutine) -> CoroutineLook:
    return CoroutineLook(clear=True, parked=(DISPATCHER, *parked))


def well(at: float) -> VmSample:
    return VmSample(at_ns=int((BEGAN + at) * SECOND), size=1, threads=4, ran=2, look=look())


def stands(moment: Moment, *, since: float = 0.0, **more: Any) -> StillThread | None:
    """Return a thread that has not run since, None until a sample has seen that."""
    if moment.at < since:
        return None
    if moment.ran is None:
        moment.ran, moment.lag = moment.at, moment.at - moment.before
        return None
    still, lag = int((moment.at - moment.ran) * SECOND), int(moment.lag * SECOND)
    return StillThread(**{"tid": 1, "comm": "t", "state": "S", "still_ns": still, "lag_ns": lag, **more})


def request(moment: Moment) -> VmSample:
    return replace(well(moment.at), look=look(*[STUCK] * (moment.at >= 0)))


def queue(moment: Moment) -> VmSample:
    """A queue of which one goes on every tenth of a second, until none does."""
    gone = int(min(moment.at, 0) * 10)
    return replace(
        well(moment.at), look=look(*(ParkedCoroutine(100 + each, b"q", Shape.QUEUED, 1) for each in range(gone, 9)))
    )


def main_loop(moment: Moment) -> VmSample:
    return replace(well(moment.at), main=stands(moment, wchan="futex_do_wait"))


def drain(moment: Moment) -> VmSample:
    """A main loop that comes to wait, two seconds later, for a request that stands."""
    waits = stands(moment, since=2.0, wchan="io_cqring_wait")
    return replace(request(moment), main=waits)


def vcpus(moment: Moment) -> VmSample:
    held = stands(moment, comm="CPU 0/KVM", wchan="futex_do_wait", mutex=0x7F00)
    return replace(well(moment.at), vcpus=(held,) * (held is not None), vcpu_count=1)


def asleep(moment: Moment) -> VmSample:
    thread = stands(moment, state="D", wchan="io_schedule")
    return replace(well(moment.at), asleep=(thread,) * (thread is not None))


STALLS = (request, queue, main_loop, drain, vcpus, asleep)


def followed(stall: Stall, moment: Moment, late: float = 0.0) -> Iterator[tuple[Moment, VmStages]]:
    """Go round for a minute as the watch does."""
    judge, stages = VmJudge(), VmStages()
    while moment.at < 60:
        stages.follow(judge.judge(stall(moment)), BEGAN + moment.at)
        yield moment, stages
        moment.before, moment.at = moment.at, moment.at + late + (loop.SUSPECT_SECONDS if stages.episode else 2.0)


def called_after(stall: Stall, phase: float, late: float, known: float = 8.0) -> float:
    """Return when a stall is called one, of a VM that was `known` for so long, sampled `late` each time."""
    for moment, stages in followed(stall, Moment(phase - known, -known - 2.0), late):
        if stages.is_called_stalled():
            return moment.at
    return 60.0


@pytest.mark.parametrize("stall", STALLS)
def test_a_stall_is_called_one_in_time_wherever_between_two_samples_it_began(stall: Stall) -> None:
    for phase, late in itertools.product([number / 10 for number in range(20)], (0.0, 0.15)):
        assert called_after(stall, phase, late) <= 9.5, (phase, late)


def test_a_stall_is_called_one_in_time_of_a_vm_that_is_new() -> None:
    for delay in (0.5, 1.0, 1.5, 2.0):
        assert called_after(request, delay, 0.0, known=0.0) <= 9.5


@pytest.mark.parametrize("stall", STALLS)
def test_what_goes_on_after_five_seconds_is_no_stall(stall: Stall) -> None:
    def for_a_while(moment: Moment) -> VmSample:
        return stall(moment) if moment.at < 5 else well(moment.at)

    for phase in [number / 10 for number in range(20)]:
        rounds = followed(for_a_while, Moment(phase - 8, phase - 10))
        assert not any(stages.is_called_stalled() for _, stages in rounds)


def test_a_main_loop_that_comes_to_wait_for_a_request_is_as_old_a_stall_as_that() -> None:
    moment, judge = Moment(-3, -4), VmJudge()
    while moment.at < 8:
        moment.before, moment.at = moment.at, moment.at + 1
        stands = judge.judge(drain(moment)).stands
    assert stands is not None
    assert (stands.kind, stands.age_ns, stands.most_ns) == (StallKind.MAIN_LOOP, 6 * SECOND, 9 * SECOND)


def test_a_thread_that_stands_may_have_done_so_since_the_sample_before_the_one_that_saw_it_run() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
        files = VmFiles(vm.pid, stat_of(f"/proc/{vm.pid}").start_ticks)
        try:
            assert vm.stdin is not None
            assert vm.stdout is not None
            time.sleep(0.3)  # until it has come to wait

            def main(second: int) -> StillThread | None:
                sample = files.sample(second * SECOND, closely=True)
                assert sample is not None
                return sample.main

            assert main(100) is None
            first = main(102)
            os.write(vm.stdin.fileno(), b"x")
            assert os.read(vm.stdout.fileno(), 1) == b"x"
            time.sleep(0.3)
            assert main(104) is None
            second = main(107)
        finally:
            files.close()
            vm.kill()
    assert first is not None
    assert second is not None
    assert (first.still_ns, first.lag_ns) == (2 * SECOND, MOST_LAG_NS)
    assert (second.still_ns, second.lag_ns) == (3 * SECOND, 2 * SECOND)


def is_due(*, suspect: bool, ago: float, beside: bool = False) -> bool:
    """Return whether a VM that was sampled so long ago is due, perhaps beside one that is suspected."""
    now = 1000 * SECOND
    vm: Any = SimpleNamespace(suspect=suspect, files=SimpleNamespace(sampled_ns=now - int(ago * SECOND)))
    other: Any = SimpleNamespace(suspect=beside)
    return Watch(vms={(1, 1): vm, (2, 2): other})._is_due(vm, now)


def test_a_sample_that_came_late_does_not_cost_the_next_one() -> None:
    assert is_due(suspect=True, ago=0.69)
    assert is_due(suspect=False, ago=1.4)
    assert is_due(suspect=False, ago=1.6, beside=True)
    assert not is_due(suspect=False, ago=1.1, beside=True)
    assert not is_due(suspect=True, ago=0.4)
