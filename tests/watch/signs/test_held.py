"""For how long the watch itself was held between two rounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from autopsy.watch.config import Sampling, WatchConfig
from autopsy.watch.judge import VmJudge
from autopsy.watch.loop import Watch
from autopsy.watch.model import Round
from autopsy.watch.sample import VmSample
from autopsy.watch.signs import held
from autopsy.watch.signs.held import HELD_NS, HeldTime
from autopsy.watch.tokens import SECOND


def late_by(seconds: float) -> Callable[[float], bool]:
    return lambda planned: bool(time.sleep(planned + seconds))


def test_a_wait_that_lasts_much_longer_than_it_was_to_is_time_in_which_we_were_held() -> None:
    ours = HeldTime()
    assert ours.wait(late_by(0.7), 0.1) is False
    assert ours.total_ns == pytest.approx(0.7 * SECOND, abs=0.2 * SECOND)


def test_a_wait_that_ends_late_is_none_nor_is_one_that_a_signal_ends() -> None:
    ours = HeldTime()
    assert ours.wait(late_by(0.1), 0.1) is False
    assert ours.wait(lambda _: True, 60.0) is True
    assert ours.total_ns == 0


def test_who_is_given_no_processor_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = iter((0, 700_000_000))
    monkeypatch.setattr(held, "run_delay", lambda: next(delays))
    ours = HeldTime()
    ours.wait(late_by(0.7), 0.1)
    assert ours.total_ns == 0


def test_we_wait_for_a_processor_now_and_then() -> None:
    assert held.run_delay() > 0


def test_a_watch_knows_for_how_long_it_was_held_between_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(config=WatchConfig(sampling=Sampling(every_seconds=0.1)), captures=False)
    monkeypatch.setattr(Watch, "round", lambda _: Round(at=0.0))
    ends = iter((False, True))

    def stopped(seconds: float) -> bool:
        time.sleep(seconds + 0.7)
        return next(ends)

    watch.run((), stopped)
    assert watch.held.total_ns == pytest.approx(1.4 * SECOND, abs=0.3 * SECOND)


def test_what_stood_before_the_watch_was_held_is_no_older_after_it() -> None:
    judge = VmJudge()
    judge.judge(VmSample(at_ns=100 * SECOND, size=1, threads=1, ran=1))
    judge.judge(VmSample(at_ns=102 * SECOND, size=1, threads=1, ran=1, held_ns=HELD_NS))
    assert judge.lost_ns == HELD_NS, "the rest of the time counts: who is held all the while is not blind"
    judge.judge(VmSample(at_ns=130 * SECOND, size=1, threads=1, ran=1, held_ns=HELD_NS + 27 * SECOND))
    assert judge.lost_ns == HELD_NS + 28 * SECOND, "nor does what lies around a sleep"
