"""The runner: every step in its order, none costing the next its evidence."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.manifest import StepRecord, TargetRecord
from autopsy.capture import beginning, pace, runner
from autopsy.capture.endwatch import EndWatch
from autopsy.capture.later import Later
from autopsy.capture.plan import MEANWHILE, PLAN, UNHURRIED, UNSTABLE
from autopsy.capture.run import Interrupted, Run
from autopsy.capture.runner import INTERRUPTED
from autopsy.capture.staging import places
from autopsy.capture.staging.staging import Staging, prepare
from autopsy.capture.step import Collected, Deadline, Impact, Options, Outcome, Scene, Skipped, Step, TimedOut
from autopsy.target.target import Target
from support import lab


class Quiet:
    def __init__(
        self,
        tick: Callable[[], None] = lambda: None,
        *,
        curious: bool = False,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.tick = tick
        self.curious = curious
        self.heard = heard
        self.told: list[str] = []

    def tell(self, words: str) -> None:
        self.told.append(words)
        self.heard()

    def began(self, step: Step) -> None:
        pass

    def ended(self, record: StepRecord) -> None:
        pass


@pytest.fixture(autouse=True)
def at_ease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host be one that is not starved, whatever else runs on it."""
    monkeypatch.setattr(pace, "spent", lambda: (0, 0))
    monkeypatch.setattr(beginning, "spent", lambda: (0, 0))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Staging]:
    made = prepare(f"autopsy-test-{os.getpid()}", (tmp_path / "out",))
    yield made
    made.clear()
    assert not made.work.exists()


def around(stage: Staging, budget: float = 30, watcher: Quiet | None = None) -> Run:
    record = TargetRecord(
        pid=os.getpid(),
        name="vm",
        manager="process",
        start_ticks=1,
        exe="",
        exe_deleted=False,
        build_id="",
        qemu_version="",
    )
    vm = Target(record, os.pidfd_open(os.getpid()))
    return Run(
        target=vm,
        watch=EndWatch(vm),
        options=Options(),
        staging=stage,
        budget=Deadline(budget),
        watcher=watcher or Quiet(),
        note=lambda _: None,
    )


def run(plan: tuple[Step, ...], it: Run) -> tuple[StepRecord, ...]:
    records = runner.run(plan, it)
    it.staging.settled()
    return records


def step(name: str, collect: Callable[[Scene], Outcome], deadline: float = 5) -> Step:
    return Step(name, Impact.NONE, deadline, collect)


def good(scene: Scene) -> Outcome:
    scene.write("x", b"evidence")
    return Collected("fine", stop_ns=7)


def bad(scene: Scene) -> Outcome:
    scene.write("before", b"kept")
    raise ValueError("a bug")


def hang(scene: Scene) -> Outcome:
    scene.write("before", b"kept")
    time.sleep(600)
    return Collected()


def die(_: Scene) -> Outcome:
    os._exit(3)


def test_each_step_ends_as_it_did_and_the_next_one_runs(stage: Staging) -> None:
    plan = (
        step("bad", bad),
        step("hang", hang, 0.3),
        step("die", die),
        step("skip", lambda _: Skipped("no need")),
        step("late", lambda _: TimedOut("query-status: no answer in 2.0 s")),
        step("good", good),
    )
    records = run(plan, around(stage))
    outcomes = [record.outcome for record in records]
    assert outcomes == ["Failed", "TimedOut", "Failed", "Skipped", "TimedOut", "Collected"]
    assert records[0].why == "ValueError: a bug"
    assert records[-1].stop_ns == 7


def test_what_a_step_wrote_before_it_hung_is_durable(stage: Staging) -> None:
    run((step("hang", hang, 0.3), step("bad", bad)), around(stage))
    assert (stage.durable / "evidence/hang/before").read_bytes() == b"kept"
    assert (stage.durable / "evidence/bad/before").read_bytes() == b"kept"
    assert stage.durable != stage.work


def test_a_library_s_timeout_is_a_failure_not_our_deadline(stage: Staging) -> None:
    def collect(_: Scene) -> Outcome:
        raise TimeoutError("somebody else's")

    (record,) = run((step("x", collect),), around(stage))
    assert record.outcome == "Failed"


def test_the_budget_holds_and_the_rest_are_skipped(stage: Staging) -> None:
    began = time.monotonic()
    records = run((step("one", hang, 60), step("two", good), step("three", good)), around(stage, budget=1.0))
    assert time.monotonic() - began < 10
    assert [record.outcome for record in records] == ["TimedOut", "Skipped", "Skipped"]
    assert records[1].why == "the budget is spent"


def test_an_interrupted_capture_skips_the_rest_and_keeps_what_it_has(stage: Staging) -> None:
    def tick() -> None:
        raise Interrupted

    records = run((step("one", hang), step("two", good)), around(stage, watcher=Quiet(tick)))
    assert [(record.outcome, record.why) for record in records] == [
        ("Failed", INTERRUPTED),
        ("Skipped", INTERRUPTED),
    ]


def test_a_place_that_is_full_is_given_up_for_the_next(stage: Staging) -> None:
    stage.places.insert(0, Path("/dev/full"))
    run((step("good", good),), around(stage))
    assert "/dev/full" in stage.notes[0]
    assert (stage.durable / "evidence/good/x").read_bytes() == b"evidence"


def test_a_directory_that_cannot_be_written_is_passed_over_and_told(tmp_path: Path) -> None:
    made = prepare(f"autopsy-ro-{os.getpid()}", (Path("/proc/nowhere"), tmp_path / "good"))
    try:
        assert made.places[0] == tmp_path / "good"
        assert any("/proc/nowhere" in note for note in made.notes)
    finally:
        made.clear()


def test_without_memory_to_work_in_the_disk_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MEMORY", ())
    made = prepare(f"autopsy-disk-{os.getpid()}", (tmp_path,))
    run((step("good", good),), around(made))
    assert made.work == made.durable
    assert (made.durable / "evidence/good/x").read_bytes() == b"evidence"
    made.clear()


def curious(stage: Staging, judge: Callable[[], bytes], seconds: float, gap: float = 5.0) -> list[str]:
    """Return what is told of the evidence so far while the second look waits, for so long or until it is."""
    was_told = stage.work / "told"
    watcher = Quiet(curious=True, heard=was_told.touch)

    def wait(_: Scene) -> Outcome:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and not was_told.exists():
            time.sleep(0.02)
        return Collected()

    it = around(stage, watcher=watcher)
    run((step(layout.SECOND_EXPOSURE, wait),), replace(it, options=Options(gap=gap), judge=judge))
    return watcher.told


def test_while_the_second_look_waits_it_is_told_what_is_known_so_far(stage: Staging) -> None:
    assert curious(stage, lambda: b"8 requests wait", seconds=30) == ["so far: 8 requests wait"]


def test_a_first_judgement_that_hangs_or_dies_costs_nothing(stage: Staging) -> None:
    began = time.monotonic()
    assert curious(stage, lambda: bytes(time.sleep(600) or 0), seconds=0.3) == []
    assert curious(stage, lambda: bytes(os._exit(3)), seconds=0.3) == []
    assert time.monotonic() - began < 20


def test_nobody_judges_twice_where_nobody_watches_or_the_wait_is_short(stage: Staging) -> None:
    assert curious(stage, lambda: b"too late", gap=0.5, seconds=0.5) == []


def test_what_may_harm_the_vm_begins_only_when_everything_else_is_durable(stage: Staging) -> None:
    def harm(_: Scene) -> Outcome:
        assert stage.durable != stage.work
        return Collected((stage.durable / "evidence/good/x").read_text())

    plan = (step("good", good), Step("harm", Impact.MAY_HARM, 5, harm))
    assert [record.why for record in run(plan, around(stage))] == ["fine", "evidence"]


def test_what_may_harm_the_vm_is_left_out_where_nothing_could_be_stored(stage: Staging) -> None:
    stage.places.clear()
    records = run((step("good", good), Step("harm", Impact.MAY_HARM, 5, good)), around(stage))
    assert [record.outcome for record in records] == ["Collected", "Skipped"]
    assert records[1].why == "what was taken so far could be stored nowhere yet"


def test_what_need_not_wait_is_begun_beside_the_steps_before_it_and_told_in_its_place(stage: Staging) -> None:
    def slow(scene: Scene) -> Outcome:
        time.sleep(0.4)
        return good(scene)

    beside = Step("late", Impact.NONE, 5, slow, after="first")
    plan = (step("first", good), step("second", slow), beside, step("last", good))
    records = run(plan, around(stage))
    assert [each.name for each in records] == ["first", "second", "late", "last"]
    assert {each.outcome for each in records} == {"Collected"}
    first, second, late, _ = records
    assert first.end_ns < late.start_ns < second.end_ns


def waiting(stage: Staging, seen: list[str]) -> Callable[[Scene], Outcome]:
    """Return a collector that says whether the other was at work when it began, and waits for it."""

    def collect(scene: Scene) -> Outcome:
        assert scene.beside is not None
        scene.write("was-at-work", str(not scene.beside.has_ended()).encode())
        scene.wait_for_other()
        return Collected(" ".join(name for name in seen if (stage.work / "evidence" / name / "x").exists()))

    return collect


def test_a_step_beside_another_begins_once_all_others_have_ended_and_waits_for_it_itself(stage: Staging) -> None:
    def slow(scene: Scene) -> Outcome:
        time.sleep(0.8)
        return good(scene)

    def middling(scene: Scene) -> Outcome:
        time.sleep(0.3)
        return good(scene)

    again = Step("again", Impact.STOPS, 0.2, waiting(stage, ["slow", "between"]), beside="slow")
    plan = (step("first", good), step("slow", slow), Step("between", Impact.NONE, 5, middling, after="first"), again)
    records = run(plan, around(stage))
    assert [each.name for each in records] == ["first", "slow", "between", "again"]
    assert {each.outcome for each in records} == {"Collected"}
    _, other, between, last = records
    assert last.why == "slow between"
    assert (stage.work / "evidence/again/was-at-work").read_text() == "True"
    assert between.start_ns + 300_000_000 <= last.start_ns < other.end_ns <= last.end_ns


def test_a_step_beside_another_waits_for_its_turn_where_one_between_has_not_begun(stage: Staging) -> None:
    def slow(scene: Scene) -> Outcome:
        time.sleep(0.3)
        return good(scene)

    def alone(scene: Scene) -> Outcome:
        return Collected("alone" if scene.beside is None else "beside")

    plan = (step("slow", slow), step("between", good), Step("again", Impact.STOPS, 5, alone, beside="slow"))
    assert [each.why for each in run(plan, around(stage))] == ["fine", "fine", "alone"]


def test_nothing_is_begun_beside_another_where_the_host_is_starved(stage: Staging) -> None:
    def slow(scene: Scene) -> Outcome:
        time.sleep(0.3)
        return good(scene)

    def alone(scene: Scene) -> Outcome:
        return Collected("alone" if scene.beside is None else "beside")

    plan = (step("slow", slow), Step("again", Impact.STOPS, 5, alone, beside="slow"))
    starved = replace(around(stage), pace=pace.Pace(ran_ns=1e8, waited_ns=4e8))
    assert [each.why for each in run(plan, around(stage))] == ["fine", "beside"]
    assert [each.why for each in run(plan, starved)] == ["fine", "alone"]


def test_the_vm_that_ends_beside_ended_after_the_step_that_does_more_to_it(stage: Staging) -> None:
    with subprocess.Popen(["sleep", "600"]) as vm:

        def slow(scene: Scene) -> Outcome:
            lab.until("the VM has ended", lambda: lab.any_thread_in(vm.pid, "Z"))
            return good(scene)

        def end_it(scene: Scene) -> Outcome:
            os.kill(vm.pid, signal.SIGKILL)
            scene.wait_for_other()
            return Collected("met its end")

        it = around(stage)
        target = Target(msgspec.structs.replace(it.target.record, pid=vm.pid), os.pidfd_open(vm.pid))
        watch = EndWatch(target)
        again = Step(layout.SECOND_EXPOSURE, Impact.STOPS, 5, end_it, beside="slow")
        records = run((step("slow", slow), again), replace(it, target=target, watch=watch))
    assert [each.why for each in records] == ["fine", "met its end"]
    assert watch.end is not None
    assert watch.end.after == layout.SECOND_EXPOSURE


def test_what_was_taken_beside_others_before_the_vm_ended_is_told_as_taken(stage: Staging) -> None:
    with subprocess.Popen(["sleep", "600"]) as vm:

        def end_it(_: Scene) -> Outcome:
            lab.until("the other is done", (stage.work / "evidence/late/x").exists)
            time.sleep(0.2)  # for its answer
            os.kill(vm.pid, signal.SIGKILL)
            return good(_)

        it = around(stage)
        target = Target(msgspec.structs.replace(it.target.record, pid=vm.pid), os.pidfd_open(vm.pid))
        plan = (step("first", good), step("second", end_it), Step("late", Impact.NONE, 5, good, after="first"))
        records = run((*plan, step("last", good)), replace(it, target=target, watch=EndWatch(target)))
    assert [each.outcome for each in records] == ["Collected", "Collected", "Collected", "Skipped"]
    assert "ended after" in records[-1].why


def test_what_was_begun_beside_others_is_ended_when_a_person_interrupts(stage: Staging) -> None:
    def mark(scene: Scene) -> Outcome:
        scene.write("pid", str(os.getpid()).encode())
        return hang(scene)

    def tick() -> None:
        if (stage.work / "evidence/late/before").exists():
            raise Interrupted

    plan = (step("first", good), step("second", hang), Step("late", Impact.NONE, 5, mark, after="first"))
    records = run(plan, around(stage, watcher=Quiet(tick)))
    assert [each.outcome for each in records] == ["Collected", "Failed", "Skipped"]
    pid = int((stage.work / "evidence/late/pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("each", [each for each in (*PLAN, UNSTABLE) if isinstance(each.collect, Later)])
def test_every_collector_that_is_loaded_later_is_there(each: Step) -> None:
    assert isinstance(each.collect, Later)
    assert callable(each.collect.load())


@pytest.mark.parametrize("name", [*MEANWHILE, *UNHURRIED])
def test_every_module_that_is_loaded_meanwhile_is_there(name: str) -> None:
    module, _, function = name.partition(":")
    assert not function or callable(getattr(import_module(module), function))
