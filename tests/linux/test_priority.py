"""What holds a lock of the VM's runs ahead of others, for an instant at a time."""

from __future__ import annotations

import os
import time

import pytest

from autopsy.linux.child import in_child
from autopsy.linux.tasks import priority
from autopsy.linux.tasks.priority import Unpreempted
from support import lab


def scheduler() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


def test_we_run_ahead_of_others_only_inside_and_our_children_never() -> None:
    lab.need_root()
    before = scheduler()
    with Unpreempted():
        assert scheduler() == os.SCHED_FIFO
        assert in_child(lambda: str(scheduler()).encode(), 5) == str(before).encode()
    assert scheduler() == before


def test_it_gives_the_cpu_back_once_a_burst_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    seen = []
    monkeypatch.setattr(priority.os, "sched_yield", lambda: seen.append(scheduler()))
    with Unpreempted() as ahead:
        ahead.breathe()
        assert seen == []
        time.sleep(priority.BURST_SECONDS)
        ahead.breathe()
        assert seen == [os.SCHED_OTHER]
        assert scheduler() == os.SCHED_FIFO


def test_without_the_right_to_it_we_run_as_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(priority.os, "sched_setscheduler", refuse)
    with Unpreempted() as ahead:
        time.sleep(priority.BURST_SECONDS)
        ahead.breathe()
