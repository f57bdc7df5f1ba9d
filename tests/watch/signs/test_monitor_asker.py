"""The process that asks monitors: no round waits for it, and it goes with what it hangs at."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autopsy.watch.model import MonitorOutcome
from autopsy.watch.signs import monitor_asker
from autopsy.watch.signs.monitor_asker import MonitorAnswer, MonitorAsker, Process
from support import lab

HANGS = 13


def count(pid: int, start_ticks: int) -> MonitorAnswer:
    while pid == HANGS:
        time.sleep(1)
    return MonitorAnswer(MonitorOutcome.COUNTED, {"sd0": start_ticks})


def answered(asker: MonitorAsker, number: int) -> list[tuple[Process, MonitorAnswer]]:
    heard: list[tuple[Process, MonitorAnswer]] = []

    def all_are_heard() -> bool:
        heard.extend(asker.answers())
        return len(heard) >= number

    lab.until("all were answered", all_are_heard)
    return heard


def test_each_is_answered_in_turn_and_the_process_ends_with_its_owner() -> None:
    asker = MonitorAsker(count)
    assert asker.answers() == []
    asker.ask([(1, 5), (2, 6)])
    assert asker.is_busy
    heard = answered(asker, 2)
    assert [(process, answer.completed["sd0"]) for process, answer in heard] == [((1, 5), 5), ((2, 6), 6)]
    assert not asker.is_busy
    assert asker.child is not None
    place = Path(f"/proc/{asker.child.pid}")
    asker.close()
    assert not place.exists()


def test_what_hangs_costs_itself_and_no_round_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_asker, "PATIENCE", 0.3)
    asker = MonitorAsker(count)
    asker.ask([(HANGS, 1), (2, 6)])
    began = time.thread_time()
    assert asker.answers() == []
    assert time.thread_time() - began < 0.1
    assert [(process, answer.outcome) for process, answer in answered(asker, 1)] == [((HANGS, 1), MonitorOutcome.HUNG)]
    asker.ask([(2, 6)])
    assert answered(asker, 1)[0][0] == (2, 6)
    asker.close()
