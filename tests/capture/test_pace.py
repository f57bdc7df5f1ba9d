"""On a starved host a capture does less, in one order, and ends within its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.capture import pace
from autopsy.capture.pace import STARVED, Pace, Thinned, age, spent, thin_out
from autopsy.capture.plan import PLAN
from autopsy.linux.child import in_child
from support import lab

WORK = sum(step.cpu for step in PLAN)
NAMES = [step.name for step in PLAN]
KEPT = {layout.WITNESS, layout.FREEZE, layout.QUERY_STATUS, layout.SECOND_EXPOSURE}


def captured(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def slow(slowness: float) -> Pace:
    return Pace(ran_ns=1e8, waited_ns=(slowness - 1) * 1e8)


def test_nothing_is_left_out_where_there_is_time_for_all() -> None:
    assert thin_out(PLAN, slow(10), 10 * WORK + 1) == Thinned()


def test_nothing_is_left_out_for_want_of_time_where_the_host_is_not_starved() -> None:
    assert thin_out(PLAN, slow(STARVED - 0.1), 0.1) == Thinned()


def test_what_the_bundle_can_tell_later_is_left_out_first() -> None:
    assert thin_out(PLAN, slow(10), 10 * WORK - 1) == Thinned(lean=frozenset({layout.GDB_THREADS}))
    thin = thin_out(PLAN, slow(10), 10 * WORK - 5)
    assert thin.lean == {layout.GDB_THREADS, layout.SECOND_EXPOSURE}
    assert not thin.out


def test_less_time_never_brings_back_what_was_left_out() -> None:
    before = Thinned()
    for tenth in range(int(100 * WORK), -1, -1):
        now = thin_out(PLAN, slow(10), tenth / 10)
        assert before.out <= now.out
        assert before.lean | before.out <= now.lean | now.out
        before = now


def test_threads_memory_and_the_second_look_are_never_left_out() -> None:
    assert not thin_out(PLAN, slow(1000), 0).out & KEPT
    assert {part.step for part in pace.THINNED} <= set(NAMES)
    for part in pace.THINNED:  # none saves more than it costs
        cost = next(step.cpu for step in PLAN if step.name == part.step)
        assert sum(other.saves for other in pace.THINNED if other.step == part.step) <= cost


def test_a_step_that_has_begun_stays_as_it_was_begun() -> None:
    thin = thin_out(PLAN, slow(10), 0, begun={layout.GDB_THREADS})
    assert layout.GDB_THREADS not in thin.lean | thin.out


def test_the_pace_is_that_of_the_last_work() -> None:
    now = Pace()
    assert now.slowness == 1
    now.take(int(pace.WINDOW_NS), int(9 * pace.WINDOW_NS))
    assert now.slowness == pytest.approx(10)
    for _ in range(20):
        now.take(int(pace.WINDOW_NS), 0)
    assert now.slowness < 1.1


def test_a_kernel_that_tells_nothing_counts_as_a_host_at_ease(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert spent() == (0, 0)
    assert age() == 0
    now = Pace()
    now.look()
    assert now.slowness == 1


def test_a_process_knows_how_it_was_let_work_and_for_how_long_it_has_been_there() -> None:
    began = time.monotonic()
    ran, _ = spent()
    while time.process_time() < 0.02 or time.monotonic() - began < 0.05:
        pass
    assert spent()[0] > ran
    assert 0 < age() < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert float(in_child(lambda: str(age()).encode(), 5)) < 2


@pytest.mark.live
@pytest.mark.soak
def test_a_capture_beside_many_that_burn_the_cpus_ends_within_its_budget(tmp_path: Path) -> None:
    budget, count = 20.0, 7 * len(os.sched_getaffinity(0))
    burn = [sys.executable, "-c", "while True: pass"]
    with lab.qemu("7.2") as machine:
        burners = [subprocess.Popen(burn, start_new_session=True) for _ in range(count)]
        try:
            began = time.monotonic()
            words = ("capture", f"pid:{machine.pid}", "--json", "--budget", str(budget), "--out", str(tmp_path))
            answer = captured([sys.executable, "-m", "autopsy", *words])
            seconds = time.monotonic() - began
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
    assert seconds < budget + 2
    assert open_bundle(Path(answer["bundle"])).manifest.files
    thinned = [one for one in answer["steps"] if "starved" in one["why"]]
    assert all(one["outcome"] in {"Skipped", "Collected"} for one in thinned)


@pytest.mark.live
def test_on_a_host_that_lets_nothing_work_what_is_left_out_says_why(tmp_path: Path) -> None:
    """The pace is given, not met: a starved host for a test would starve the others."""
    elsewhere = "from autopsy.capture import pace; pace.spent = lambda: (10**8, 4 * 10**9); "
    program = f"{elsewhere}from autopsy.capture import beginning; beginning.spent = pace.spent; "
    program += "from autopsy.cli.app import main; main()"
    with lab.qemu("7.2") as machine:
        words = ("capture", f"pid:{machine.pid}", "--fast", "--json", "--budget", "40", "--out", str(tmp_path))
        answer = captured([sys.executable, "-c", program, *words])
    why = {one["name"]: (one["outcome"], one["why"]) for one in answer["steps"]}
    assert {step: why[step] for step in KEPT if why[step][0] != "Collected"} == {}
    assert why[layout.GDB_THREADS][0] == "Skipped"
    assert "this host is starved" in why[layout.GDB_THREADS][1]
    assert "examine BUNDLE" in why[layout.SECOND_EXPOSURE][1]
    assert answer["verdict"]["confidence"] != "proven"
