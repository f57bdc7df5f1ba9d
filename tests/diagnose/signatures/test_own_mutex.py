"""A thread that waits for a mutex of its own is one that every look saw there, and that did nothing meanwhile."""

from __future__ import annotations

import msgspec

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e
from support.built.families import own_lock, ring_of_locks

IOTHREAD = e.PID + 50


def told(case: e.Case) -> Diagnosis:
    return diagnose(gather_facts(case.bundle()))


def moved(case: e.Case) -> e.Case:
    for task in case.tasks:
        if task.tid == IOTHREAD:
            task.switches, task.cpu_ns = 900, e.SECOND
    return case


def test_one_that_stands_in_it_is_a_deadlock() -> None:
    assert told(own_lock("blk_drain")).signature == "mutex-self-deadlock"


def test_one_whose_looks_do_not_agree_had_just_been_given_the_lock() -> None:
    case = own_lock("blk_drain")
    assert case.locks is not None
    case.locks = msgspec.structs.replace(case.locks, cycles=())  # the examination built no ring on what it doubts
    assert told(case).signature != "mutex-self-deadlock"


def test_one_that_went_on_between_the_looks_is_no_deadlock_whatever_one_look_says() -> None:
    assert told(moved(own_lock("blk_drain"))).signature != "mutex-self-deadlock"


def test_a_ring_of_which_one_went_on_is_none() -> None:
    assert told(ring_of_locks()).signature == "lock-cycle"
    assert told(moved(ring_of_locks())).signature != "lock-cycle"
