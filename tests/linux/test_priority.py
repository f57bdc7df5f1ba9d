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


def need_the_right() -> None:
    """Skip where even root has it not: a control group of version 1 may leave no time to real-time tasks."""
    lab.need_root()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("the control group of the CPU lets no task run ahead of others")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_we_run_ahead_of_others_only_inside_and_our_children_never() -> None:
    need_the_right()
    before = scheduler()
    with Unpreempted():
        assert scheduler() == os.SCHED_FIFO
        assert in_child(lambda: str(scheduler()).encode(), 5) == str(before).encode()
    assert scheduler() == before


def test_it_gives_the_cpu_back_once_a_burst_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    need_the_right()
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
