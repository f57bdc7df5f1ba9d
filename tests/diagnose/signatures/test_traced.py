"""A VM is held by a debugger, or by a signal, only where a thread stays stopped."""

from __future__ import annotations

import pytest

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

STRACE = 777


def traced(*, switches: int, later: str, two: bool = True) -> Diagnosis:
    """Return what is said of an idle VM whose main thread was stopped by its tracer at the first look."""
    case = e.Case(two=two)
    case.idle_threads()
    case.monitor()
    case.disks(e.disk("d0"))
    for task in case.tasks:
        task.tracer = STRACE
    main = case.tasks[0]
    main.state, main.stack, main.switches = "t", ("ptrace_stop", "ptrace_notify"), switches
    main.cpu_ns = switches * 1_000_000
    main.later = {"state": later, "tracer": STRACE}
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize("later", ["S", "t"])  # strace may well have it again
def test_a_tracer_that_lets_each_thread_go_on_holds_nothing(later: str) -> None:
    assert traced(switches=400, later=later).where == "none"


def test_a_thread_that_its_tracer_keeps_is_held() -> None:
    found = traced(switches=0, later="t")
    assert (found.signature, found.confidence) == ("process-traced", "proven")
    assert f"tracer {STRACE}" in found.objects


def test_one_thread_in_a_tracers_stop_at_the_only_look_proves_nothing() -> None:
    found = traced(switches=0, later="t", two=False)
    assert (found.signature, found.confidence) == ("process-traced", "likely")


@pytest.mark.parametrize(("later", "sure", "says"), [("S", "likely", "runs again"), ("T", "proven", "is stopped")])
def test_a_vm_that_was_stopped_and_runs_again_is_told_as_that(later: str, sure: str, says: str) -> None:
    case = e.Case()
    case.idle_threads()
    case.disks(e.disk("d0"))
    for task in case.tasks:
        task.state, task.later = "T", {"state": later}
    found = diagnose(gather_facts(case.bundle()))
    assert (found.signature, found.confidence) == ("process-stopped", sure)
    assert says in found.headline
