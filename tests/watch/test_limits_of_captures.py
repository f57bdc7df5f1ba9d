"""What may be captured: never more than the limits say, and each stall that is passed over is counted."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.watch.limits import LONGEST_SECONDS, CaptureGate, CaptureLimits, Go
from autopsy.watch.model import StallKind, Suppression

DISK, REQUEST = StallKind.DISK, StallKind.REQUEST
GO = Go()


def captured(gate: CaptureGate, vm: str, at: float, stalled: float, kind: StallKind = DISK) -> Go | Suppression:
    """Ask, and have the capture end at once."""
    said = gate.may_capture(vm, kind, at, stalled)
    gate.ended(vm)
    return said


def test_one_stall_is_captured_once_and_again_after_a_minute_and_no_more() -> None:
    gate = CaptureGate()
    said = [captured(gate, "a", 100.0 + stalled, float(stalled)) for stalled in range(8, 200, 2)]
    assert [index * 2 + 8 for index, each in enumerate(said) if each == GO] == [8, 60]
    assert set(said) == {GO, Suppression.EPISODE}
    assert gate.suppressed == {Suppression.EPISODE: 1}  # one stall, however often it was asked for


def test_a_stall_that_changes_its_kind_is_the_same_stall() -> None:
    gate = CaptureGate()
    assert captured(gate, "a", 8.0, 8.0, REQUEST) == GO
    assert captured(gate, "a", 10.0, 10.0, DISK) == Suppression.EPISODE


def test_the_next_stall_is_captured_only_if_it_is_worse_than_the_last_of_its_kind() -> None:
    gate = CaptureGate()
    assert captured(gate, "a", 8.0, 8.0) == GO
    assert captured(gate, "a", 108.0, 8.0) == Suppression.NOT_WORSE
    assert captured(gate, "a", 112.0, 12.0) == Suppression.NOT_WORSE
    assert captured(gate, "a", 116.0, 16.0) == GO
    other = CaptureGate()
    assert captured(other, "a", 8.0, 8.0) == GO
    assert captured(other, "a", 108.0, 8.0, REQUEST) == GO
    later = CaptureGate()
    assert captured(later, "a", 8.0, 8.0) == GO
    assert captured(later, "a", 1300.0, 8.0) == GO


def test_one_vm_and_one_host_have_so_many_an_hour() -> None:
    gate = CaptureGate(CaptureLimits(high_water_seconds=1.0))
    assert [captured(gate, "a", at, 8.0) for at in (100.0, 200.0, 300.0)] == [GO, GO, Suppression.VM]
    assert [captured(gate, f"b{at}", at, 8.0) for at in (400.0, 500.0, 600.0, 700.0)] == [GO] * 4
    assert captured(gate, "c", 800.0, 8.0) == Suppression.HOST
    assert captured(gate, "c", 3750.0, 8.0) == GO
    assert gate.suppressed == {Suppression.VM: 1, Suppression.HOST: 1}


def test_there_is_one_capture_at_a_time_and_one_that_never_ends_is_not_waited_for() -> None:
    gate = CaptureGate()
    assert gate.may_capture("a", DISK, 8.0, 8.0) == GO
    assert gate.may_capture("b", DISK, 40.0, 8.0) == Suppression.RUNNING
    gate.ended("b")  # that one was not at work
    assert gate.may_capture("b", DISK, 42.0, 10.0) == Suppression.RUNNING
    gate.ended("a")
    assert gate.may_capture("b", DISK, 44.0, 12.0) == GO
    assert gate.may_capture("c", DISK, 44.0 + LONGEST_SECONDS, 8.0) == GO


def test_of_a_storm_one_vm_is_captured_in_full_and_the_others_lightly() -> None:
    gate = CaptureGate()
    assert gate.may_capture("a", DISK, 8.0, 8.0) == GO
    assert gate.may_capture("b", DISK, 10.0, 8.0) == Suppression.RUNNING
    assert gate.may_capture("c", DISK, 12.0, 8.0) == Suppression.STORM
    gate.ended("a")
    assert [captured(gate, vm, 20.0, 18.0 - late) for late, vm in ((2, "b"), (4, "c"))] == [Suppression.STORM] * 2
    assert gate.may_keep_light("b", 20.0, 16.0) == GO
    assert captured(gate, "d", 90.0, 8.0) == GO  # long after: another matter


def test_two_stalls_at_once_are_no_storm() -> None:
    gate = CaptureGate()
    assert [captured(gate, vm, 8.0, 8.0) for vm in "ab"] == [GO, GO]


def test_a_full_store_and_no_capture_are_told_as_such() -> None:
    gate = CaptureGate()
    assert gate.may_capture("a", DISK, 8.0, 8.0, room=False) == Suppression.STORE
    assert gate.may_keep_light("a", 8.0, 8.0, room=False) == Suppression.STORE
    assert gate.may_capture("a", DISK, 10.0, 10.0) == GO  # there is room again
    off = CaptureGate(CaptureLimits(enabled=False))
    assert off.may_capture("a", DISK, 8.0, 8.0) == Suppression.DISABLED
    assert off.may_keep_light("a", 8.0, 8.0) == Suppression.DISABLED


def test_light_bundles_are_limited_too() -> None:
    gate = CaptureGate(CaptureLimits(light_per_vm=2))
    assert [gate.may_keep_light("a", at, 5.0) for at in (100.0, 200.0, 300.0)] == [GO, GO, Suppression.VM]
    assert gate.may_keep_light("b", 300.0, 5.0) == GO


def test_a_watch_that_was_begun_again_goes_on_with_the_limits_of_the_last() -> None:
    gate = CaptureGate()
    gate.remember("a", 90.0)
    gate.remember("a", 95.0)
    assert captured(gate, "a", 100.0, 60.0) == Suppression.VM


ASKS = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from([DISK, REQUEST]),
        st.floats(0, 400),  # seconds since the last
        st.floats(5, 600),  # for how long it has stalled
        st.booleans(),  # whether captures end before the next is asked for
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(ASKS, st.integers(0, 3), st.integers(0, 5), st.integers(0, 3))
def test_whatever_is_asked_no_limit_is_ever_passed(
    asks: list[tuple[str, StallKind, float, float, bool]], per_vm: int, per_host: int, per_episode: int
) -> None:
    limits = msgspec.structs.replace(CaptureLimits(), per_vm=per_vm, per_host=per_host, per_episode=per_episode)
    gate, now, running = CaptureGate(limits), 0.0, ""
    went: list[tuple[str, float]] = []
    refused: Counter[Suppression] = Counter()
    for vm, kind, passed, stalled, ends in asks:
        now += passed
        match gate.may_capture(vm, kind, now, stalled):
            case Go():
                assert not running or now - went[-1][1] >= LONGEST_SECONDS
                went.append((vm, now))
                running = vm
            case Suppression() as why:
                refused[why] += 1
        if ends:
            gate.ended(vm)
            running = "" if running == vm else running
        window = [each for each in went if each[1] > now - limits.window_seconds]
        assert len(window) <= per_host
        assert max(Counter(each for each, _ in window).values(), default=0) <= per_vm
    assert all(0 < count <= refused[why] for why, count in gate.suppressed.items())
    assert gate.suppressed.keys() == refused.keys()
    assert len(gate._started) <= max(1, per_host) * 2
    assert len(gate._episodes) <= 5
