"""A process that has no descriptor left takes no connection: its main loop comes round all the same."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.bundle.sections import Section, render
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

TASKS = layout.evidence(layout.WITNESS, layout.TASKS)
LIMITS = "Limit                     Soft Limit  Hard Limit  Units\nMax open files            {most} {most} files\n"


def told(*opened: int, most: int, stuck: bool = False) -> Diagnosis:
    """Return what is said of a VM with these descriptors open, whose monitor gives no greeting."""
    case = e.Case()
    case.idle_threads()
    case.descriptors.update(dict.fromkeys(opened, "anon_inode:[eventfd]"))
    case.asked("(greeting)", {}, outcome="silent")
    if stuck:
        case.parked(e.NBD)
    bundle = case.bundle()
    bundle.files[TASKS] += render([Section("limits", LIMITS.format(most=most).encode())])
    return diagnose(gather_facts(bundle))


def test_where_all_that_it_may_have_are_open_nobody_is_accepted() -> None:
    found = told(*range(9), 40, most=9)
    assert (found.where, found.signature, found.confidence) == ("control", "descriptors-exhausted", "proven")
    assert found.kill == "needless"
    assert "monitor-unanswered" not in {each.signature for each in found.secondary}


def test_where_one_is_left_the_monitor_s_silence_has_another_reason() -> None:
    found = told(*range(8), 40, most=9)
    assert found.signature != "descriptors-exhausted"
    assert "monitor-unanswered" in {found.signature, *(each.signature for each in found.secondary)}


def test_what_stands_comes_before_it() -> None:
    found = told(*range(9), most=9, stuck=True)
    assert found.signature == "nbd-silent"
    assert "descriptors-exhausted" in {each.signature for each in found.secondary}
