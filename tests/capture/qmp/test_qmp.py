"""The steps that ask a monitor, on real QEMUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.capture.qmp import commands, session
from autopsy.capture.qmp import step as qmp
from autopsy.capture.step import Collected, Skipped, TimedOut
from support import fake_qmp, lab
from support.asking import (
    DISKS,
    a_monitor,
    capture_of,
    capture_of_qemu,
    client_of,
    impatient,
    other_client_of,
)


@pytest.mark.live
def test_a_healthy_vm_answers_all_three_steps_and_then_again(build: lab.Build, short: Path) -> None:
    with capture_of_qemu(short, build, *DISKS) as (capture, _):
        capture.witness()
        assert isinstance(capture.query_status(), Collected)
        assert isinstance(capture.query_block(), Collected)
        assert isinstance(capture.throttle_groups(), Collected)
        assert isinstance(capture.ask_again(), Collected)
        told = [each for step in qmp.BEFORE for each in capture.told(step)]
        assert {each.outcome for each in told} <= {"greeted", "answered", "skipped"}
        assert capture.of("query-status").answer["status"] == "running"
        (limits,) = [each for each in told if each.question == commands.QOM_GET]
        assert limits.arguments["path"] == "/objects/tg0"
        assert limits.answer["iops-total"] == 100
        (disk,) = [each for each in capture.of("query-block", layout.QUERY_BLOCK).answer if each["device"] == "d0"]
        assert disk["inserted"]["iops"] == 50
        again = capture.outcomes(layout.SECOND_EXPOSURE)
        assert again["query-blockstats"] == again["query-jobs"] == "answered"
        assert not set(again) & {commands.BLOCK, commands.NAMED_NODES, commands.QOM_GET}


@pytest.mark.live
def test_counters_that_take_a_lock_wait_for_the_guard_on_an_old_qemu_with_iothreads(short: Path) -> None:
    lab.need_older_than(9)
    with capture_of_qemu(short, "7.2", *DISKS) as (capture, _):
        capture.witness()
        capture.query_status()
        assert capture.of("query-blockstats").outcome == "skipped"
        assert capture.of("query-jobs").outcome == "answered"
        capture.query_block()
        assert capture.of("query-blockstats", layout.QUERY_BLOCK).outcome == "answered"


@pytest.mark.live
def test_an_old_qemu_without_iothreads_tells_its_counters_at_once(short: Path) -> None:
    with capture_of_qemu(short, "7.2") as (capture, _):
        capture.query_status()
        assert capture.of("query-blockstats").outcome == "answered"


@pytest.mark.live
def test_a_busy_monitor_names_who_holds_it(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    impatient(monkeypatch)
    with capture_of_qemu(short, "7.2") as (capture, machine), other_client_of(machine.monitor) as pid:
        outcome = capture.query_status()
        greeting = capture.of(commands.GREETING)
        assert greeting.outcome == "busy"
        assert greeting.peer == f"{Path('/proc/self/comm').read_text().strip()} (pid {pid})"
        assert outcome == Skipped(f"the monitor is held by {greeting.peer}")
        assert capture.query_block() == Skipped("no monitor greeted us in qmp.query-status")


@pytest.mark.live
def test_a_short_lived_client_is_waited_for(short: Path) -> None:
    lab.need_root()
    with capture_of_qemu(short, "7.2") as (capture, machine), other_client_of(machine.monitor, 0.7) as pid:
        assert isinstance(capture.query_status(), Collected)
        assert f"(pid {pid})" in capture.of(commands.GREETING).why


@pytest.mark.live
def test_the_free_one_of_two_monitors_is_asked(short: Path) -> None:
    lab.need_root()
    with lab.qemu("7.2") as machine, client_of(machine.monitor):
        monitors = (a_monitor(machine.monitor), a_monitor(machine.control))
        with capture_of(short, machine.pid, *monitors) as capture:
            assert isinstance(capture.query_status(), Collected)
            assert capture.of("query-status").monitor == str(machine.control)
            assert capture.outcomes()[commands.GREETING] == "greeted"


@pytest.mark.live
def test_a_stopped_vm_is_silent_and_our_late_questions_harm_nobody(
    build: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    with capture_of_qemu(short, build) as (capture, machine):
        with lab.stopped(machine):
            assert capture.query_status() == TimedOut("(greeting): no answer in 0.3 s")
            assert capture.outcomes() == {commands.GREETING: "silent"}
            assert capture.query_block() == Skipped("(greeting) was not answered in qmp.query-status")
        assert fake_qmp.ask(machine.monitor, "query-status")["status"] == "running"


@pytest.mark.live
def test_a_vm_that_stops_in_the_middle_gets_its_late_answer_dropped(
    build: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    real_ask = session.Interview.ask

    async def stop_before(self: session.Interview, question: str, *more: Any, **other: Any) -> Any:
        if question == commands.IOTHREADS:
            machine.process.stop()
        return await real_ask(self, question, *more, **other)

    monkeypatch.setattr(session.Interview, "ask", stop_before)
    with capture_of_qemu(short, build) as (capture, machine):
        try:
            assert capture.query_status() == TimedOut("query-iothreads: no answer in 0.3 s")
        finally:
            machine.process.resume()
        assert capture.of(commands.IOTHREADS).outcome == "no answer"
        later = capture.told()[capture.told().index(capture.of(commands.IOTHREADS)) + 1 :]
        assert {each.outcome for each in later} == {"skipped"}
        assert {each.why for each in later} == {"query-iothreads was not answered"}
        assert fake_qmp.ask(machine.monitor, "query-name") == {"name": "t"}
        assert capture.ask_again() == Skipped("query-iothreads was not answered in qmp.query-status")
