"""What is done about a stall, and when."""

from __future__ import annotations

from autopsy.watch.judge import JudgedSample, StandStill
from autopsy.watch.model import StallKind, WatchState
from autopsy.watch.stages import StallEpisode, VmStages, Wish, of_the_host

WELL = JudgedSample(WatchState.WATCHED)


def standing(seconds: float, kind: StallKind = StallKind.DISK, *, lag: float = 0.0) -> JudgedSample:
    return JudgedSample(WatchState.WATCHED, StandStill(kind, int(seconds * 1e9), int((seconds + lag) * 1e9), 0, 0))


def followed(*samples: JudgedSample) -> tuple[VmStages, list[tuple[int, Wish]], list[StallEpisode], int]:
    """Follow a sample a second; return what it called for and when, what ended, and how often it was called stalled."""
    stages, wishes, ended, called = VmStages(), [], [], 0
    for second, each in enumerate(samples):
        over = stages.follow(each, second)
        ended += [over] if over else []
        wish = stages.wish()
        wishes += [(second, wish)] if wish else []
        called += stages.is_called_stalled()
    return stages, wishes, ended, called


def test_a_stall_is_called_one_before_its_time_has_passed_though_a_round_comes_late() -> None:
    stages = VmStages()
    stages.follow(standing(7.9), 0)
    assert not stages.is_called_stalled()
    stages.follow(standing(8.1), 0.2)  # the next sample may come after 10 s
    assert stages.is_called_stalled()


def test_what_may_have_stood_between_two_samples_is_called_so_as_if_it_had() -> None:
    stages = VmStages()
    stages.follow(standing(6.1, lag=2), 0)
    assert stages.is_called_stalled()
    stages = VmStages()
    stages.follow(standing(2.9, lag=6), 0)  # but a moment is none
    assert (stages.episode, stages.is_called_stalled()) == (None, False)


def test_the_longer_a_stall_lasts_the_more_is_done() -> None:
    _, wishes, _, called = followed(*[standing(each - 0.1) for each in range(13)])
    assert wishes[0] == (5, Wish.LIGHT)
    assert wishes[1:] == [(second, Wish.CAPTURE) for second in range(8, 13)]
    assert called == 1


def test_a_moment_calls_for_nothing() -> None:
    stages, wishes, ended, called = followed(*[standing(each) for each in range(4)], WELL, WELL)
    assert (stages.episode, wishes, ended, called) == (None, [], [], 0)


def test_a_stall_of_fifteen_seconds_is_one_stall_of_fifteen_seconds() -> None:
    _, _, ended, called = followed(*[standing(each) for each in range(16)], WELL, WELL, WELL)
    assert called == 1
    assert [(each.stalled, each.seconds) for each in ended] == [(StallKind.DISK, 15)]


def test_a_stall_is_not_over_because_nobody_could_look() -> None:
    blind = JudgedSample(WatchState.STARVED)
    _, _, ended, called = followed(*[standing(each) for each in range(11)], blind, blind, blind, standing(14))
    assert (ended, called) == ([], 1)


def test_three_vms_within_seconds_are_the_hosts_matter() -> None:
    def episodes(*at: float) -> list[StallEpisode]:
        return [StallEpisode(StallKind.DISK, each) for each in at]

    assert of_the_host(episodes(0, 4, 9), 3, 10)
    assert not of_the_host(episodes(0, 4, 15), 3, 10)
    assert not of_the_host(episodes(0, 4), 3, 10)
