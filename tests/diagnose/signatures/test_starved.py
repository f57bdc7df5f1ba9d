"""A VM that the host gives no time: what its threads did not do says nothing of what they wait for."""

from __future__ import annotations

import pytest

from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts, Role
from support.built import evidence as e

CAPPED = Section("/sys/fs/cgroup/cpu/vm/cpu.stat", b"nr_periods 9\nnr_throttled 9\nthrottled_time 6512159981\n")


def starved(*, main: bool = True, capped: bool = True, slept: int = 0) -> e.Case:
    """Return a VM with a request whose worker is done, and a main thread that was ready to run at both looks."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.WORKERS)
    case.monitor()
    case.disks(e.disk("d0", "vd0"))
    if main:
        for task in case.tasks:
            if task.tid == e.PID:
                task.state, task.syscall, task.stack, task.cpu_ns, task.switches = "R", "running", (), 100_000, slept
    case.host = [CAPPED] if capped else []
    return case


def facts(case: e.Case) -> Facts:
    return gather_facts(case.bundle())


def told(case: e.Case) -> Diagnosis:
    return diagnose(facts(case))


def test_a_main_thread_that_got_no_time_is_the_cause_of_what_it_did_not_take_up() -> None:
    found = told(starved())
    assert (found.where, found.signature, found.kill) == ("host", "cpu-starved", "needless")
    assert {"aio-done-not-completed"} <= {each.signature for each in found.secondary}
    assert [each.signature for each in found.causes] == ["cpu-starved"]


def test_without_a_cap_it_is_one_too_where_it_hardly_ran() -> None:
    assert told(starved(capped=False)).signature == "cpu-starved"


def test_the_twin_whose_main_thread_had_its_time_left_a_completion() -> None:
    assert told(starved(main=False)).signature == "aio-done-not-completed"


@pytest.mark.parametrize(("slept", "waited"), [(0, 4.99), (3, 0.0)])
def test_a_wait_for_a_processor_that_goes_on_is_counted_where_the_thread_never_slept(slept: int, waited: float) -> None:
    threads = facts(starved(slept=slept)).threads
    assert isinstance(threads, Known)
    main = next(thread for thread in threads.value if thread.role is Role.MAIN)
    assert isinstance(main.movement, Known)
    assert main.movement.value.waited_ns / e.SECOND == pytest.approx(waited, abs=0.02)


def test_a_main_thread_that_is_ready_to_run_does_not_sleep_in_a_call() -> None:
    case = starved(slept=50)
    case.exchanges.clear()
    case.asked("(greeting)", {}, outcome="silent")
    found = told(case)
    assert "main-loop-blocked" not in {found.signature, *(each.signature for each in found.secondary)}
