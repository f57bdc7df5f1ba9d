"""Several VMs are captured at once: no trouble with one costs another, and none is killed that nobody named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autopsy.capture.run import Interrupted
from autopsy.capture.step import Options
from autopsy.cli.capture_several import _json, _summary
from autopsy.commands import capture_many as many
from autopsy.commands.capture_options import CaptureOptions
from autopsy.drill.scenarios import wedged
from autopsy.errors import ExitCode, NoSuchVm, UsageError


@dataclass
class Patient:
    """A watcher that is interrupted at its `interrupt_at`th tick."""

    interrupt_at: int = 0
    ticks: int = 0
    curious: bool = False
    said: list[str] = field(default_factory=list)

    def began(self, step: object) -> None:
        pass

    def ended(self, record: object) -> None:
        pass

    def tell(self, words: str) -> None:
        pass

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.interrupt_at:
            raise Interrupted


@pytest.fixture
def vms(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Return what three words mean: two VMs, one of which has two names."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(["/bin/sleep", "60"])) for _ in range(2)]
        for process in processes:
            stack.callback(process.kill)
        pids = {"a": processes[0].pid, "alias": processes[0].pid, "b": processes[1].pid}

        def find(word: str) -> Any:
            if word not in pids:
                raise NoSuchVm(word, "no running virtual machine answers to it", remedy="look")
            record = SimpleNamespace(name=word, pid=pids[word])
            return SimpleNamespace(record=record, pid=pids[word], pidfd=os.pidfd_open(pids[word]))

        monkeypatch.setattr(many.target, "find_target", find)
        monkeypatch.setattr(many, "tidy", lambda *_: ())
        monkeypatch.setattr(many, "rescue", lambda _: ())
        yield pids


def looks_stuck(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    found = [SimpleNamespace(vm=SimpleNamespace(target=word, name=word), words="is stopped") for word in words]
    monkeypatch.setattr(many, "stalled", lambda: tuple(found))


def order(*names: str, stuck: bool = False, budget: float | None = None, **wish: Any) -> many.Order:
    asked = CaptureOptions(name="", options=Options(), places=(), words=(), **wish)
    return many.Order(names=names, stuck=stuck, wish=asked, budget=budget)


def run(
    what: many.Order,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Any, CaptureOptions], int] = lambda _vm, _wish: 0,
    watcher: Patient | None = None,
) -> many.Many:
    """Run the order with `work` in the place of each capture; the bundle's name tells what it was asked for."""
    who = watcher or Patient()
    monkeypatch.setattr(many, "fulfil_for", lambda vm, wish, *_: SimpleNamespace(code=work(vm, wish), vm=vm, wish=wish))

    def render(ended: Any) -> many.FinishedCapture:
        told = {"bundle": f"/{ended.vm.pid}", "report": "", "kill": ended.wish.then_kill}
        told["budget"] = ended.wish.options.budget
        return many.FinishedCapture(exit_code=ended.code, json=json.dumps(told), lines=(ended.vm.record.name,))

    return many.capture_many(
        what,
        who,  # type: ignore[arg-type]  # it need not know steps
        render=render,
        within=lambda begin, _: begin(who, who.said.append),  # type: ignore[arg-type]  # likewise
        say=who.said.append,
    )


def answers(found: many.Many) -> list[dict[str, Any]]:
    return [json.loads(one.finished.json) for one in found.ones if one.finished]


def test_a_name_that_nobody_has_costs_the_others_nothing(vms: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(order("a", "nope", "b"), monkeypatch)
    assert [one.name for one in found.ones if one.finished] == ["a", "b"]
    (failed,) = (one for one in found.ones if one.finished is None)
    assert "no running virtual machine" in failed.trouble
    assert found.exit_code is ExitCode.NO_SUCH_VM
    shown = json.loads(_json(found))
    assert (len(shown["captures"]), shown["not_captured"][0]["target"], shown["exit_code"]) == (2, "nope", 3)
    assert "2 of 3 captured" in list(_summary(found))[-1]
    assert vms


def test_a_vm_with_two_names_is_captured_once(vms: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(order("a", "alias"), monkeypatch)
    assert [each["bundle"] for each in answers(found)] == [f"/{vms['a']}"]


@pytest.mark.usefixtures("vms")
def test_the_gravest_exit_code_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(order("a", "b"), monkeypatch, lambda vm, _: 6 if vm.record.name == "b" else 5)
    assert found.exit_code is ExitCode.STILL_THERE


@pytest.mark.usefixtures("vms")
def test_a_capture_that_dies_is_told_and_costs_the_other_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(vm: Any, _: CaptureOptions) -> int:
        if vm.record.name == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    found = run(order("a", "b"), monkeypatch, work)
    assert [one.finished is None for one in found.ones] == [True, False]
    assert found.ones[0].trouble == "the child process ended without an answer"
    assert found.ones[0].remedy.startswith("autopsy capture pid:")


def test_of_those_that_look_stuck_only_the_named_is_killed(
    vms: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks_stuck(monkeypatch, "a", "b")
    found = run(order("alias", stuck=True, then_kill=True), monkeypatch)
    assert {each["bundle"]: each["kill"] for each in answers(found)} == {f"/{vms['a']}": True, f"/{vms['b']}": False}


@pytest.mark.usefixtures("vms")
def test_a_kill_of_whatever_looks_stuck_is_refused_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_stuck(monkeypatch, "a", "b")
    with pytest.raises(UsageError, match="only if it is named") as caught:
        run(order(stuck=True, then_kill=True), monkeypatch)
    assert caught.value.remedy.endswith("look stuck: a, b")


@pytest.mark.usefixtures("vms")
def test_where_nothing_looks_stuck_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_stuck(monkeypatch)
    found = run(order(stuck=True), monkeypatch)
    assert (found.ones, found.exit_code) == ((), ExitCode.DONE)
    assert list(_summary(found)) == ["no virtual machine of this host looks stuck"]


@pytest.mark.usefixtures("vms")
def test_one_budget_is_shared_by_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "MOST_AT_ONCE", 1)
    first, second = answers(run(order("a", "b", budget=20), monkeypatch))
    assert first["budget"] <= 10
    assert 10 <= second["budget"] <= 20


@pytest.mark.usefixtures("vms")
def test_what_there_was_no_time_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(many, "LEAST_SECONDS", 1.0)

    def work(_: Any, wish: CaptureOptions) -> int:
        time.sleep(wish.options.budget + 0.3)
        return 0

    found = run(order("a", "b", budget=1.2), monkeypatch, work)
    assert [one.trouble for one in found.ones] == ["", many.GONE_BY_THEN]
    assert found.exit_code is ExitCode.NOT_STORED


@pytest.mark.usefixtures("vms")
def test_an_interrupt_reaches_the_captures_and_keeps_the_rest_from_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(many, "MOST_AT_ONCE", 1)

    def work(_: Any, __: CaptureOptions) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            return 130
        return 0

    found = run(order("a", "b"), monkeypatch, work, Patient(interrupt_at=5))
    assert [one.exit_code for one in found.ones] == [ExitCode.INTERRUPTED, ExitCode.INTERRUPTED]
    assert [one.finished is None for one in found.ones] == [False, True]


def test_without_a_name_or_stuck_nothing_can_be_meant() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "capture"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "no TARGET is named" in done.stderr


@pytest.mark.live
def test_two_wedged_vms_are_captured_at_once_and_the_stuck_are_found(stock: object, tmp_path: Path) -> None:
    from autopsy.target.stalls import Sign, stalled  # noqa: PLC0415 - only this test looks at the host

    with wedged("stopped") as stopped, wedged("throttle") as throttled, wedged("healthy") as healthy:
        ours = {stopped.pid, throttled.pid, healthy.pid}
        found = {stall.vm.pid: stall for stall in stalled() if stall.vm.pid in ours}
        assert {pid: stall.sign for pid, stall in found.items()} == {
            stopped.pid: Sign.STOPPED,
            throttled.pid: Sign.REQUESTS,
        }
        assert found[throttled.pid].words == "8 block requests do not move"
        words = ("capture", stopped.target, throttled.target, "--fast", "--json", "--out", str(tmp_path))
        done = subprocess.run(
            [sys.executable, "-m", "autopsy", *words], capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert [each["verdict"]["where"] for each in answer["captures"]] == ["process", "throttle"]
        assert len(list(tmp_path.glob("*.tar.zst"))) == 2
    assert stock
