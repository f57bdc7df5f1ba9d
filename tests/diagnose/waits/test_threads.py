"""A thread that waits for another one's end, or for the vCPUs to stop, leads to what those wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopsy.diagnose.waits.threads import thread_waits
from autopsy.diagnose.waits.wait import How
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts, Role, ThreadSnapshot
from support.built import cases
from support.built import evidence as e

SHARED_BITSET, PRIVATE_BITSET, WAKE = 0x109, 0x189, 1


def main_in_futex(operation: int, value: int) -> Facts:
    """Return the facts of an idle VM whose main thread sleeps in that futex at both looks."""
    facts = gather_facts(cases.healthy_idle().bundle())
    assert isinstance(facts.threads, Known)

    def moved(look: ThreadSnapshot) -> ThreadSnapshot:
        arguments = (0x7F00, operation, value, 0, 0, 0)
        return replace(look, syscall=replace(look.syscall, name="futex", arguments=arguments))

    changed = []
    for thread in facts.threads.value:
        if thread.role is Role.MAIN and isinstance(thread.first, Known) and isinstance(thread.again, Known):
            first, again = (Known(moved(look.value), look.cite) for look in (thread.first, thread.again))
            assert isinstance(thread.movement, Known)
            slept = Known(replace(thread.movement.value, voluntary_switches=0), thread.movement.cite)
            changed.append(replace(thread, first=first, again=again, movement=slept))
        else:
            changed.append(thread)
    return replace(facts, threads=Known(tuple(changed), facts.threads.cite))


def vcpu_of(facts: Facts) -> int:
    assert isinstance(facts.threads, Known)
    return next(thread.tid for thread in facts.threads.value if thread.role is Role.VCPU)


VCPU = vcpu_of(gather_facts(cases.healthy_idle().bundle()))


@pytest.mark.parametrize("operation", [SHARED_BITSET, 0])
def test_a_thread_that_sleeps_at_another_ones_number_waits_for_its_end(operation: int) -> None:
    (wait,) = thread_waits(main_in_futex(operation, VCPU))
    assert (wait.waiter, wait.how, wait.on) == (subjects.Thread(e.PID), How.JOINS, subjects.Thread(VCPU))


@pytest.mark.parametrize(
    ("operation", "value"), [(PRIVATE_BITSET, VCPU), (WAKE, VCPU), (SHARED_BITSET, 1), (SHARED_BITSET, e.PID)]
)
def test_a_word_of_its_own_a_number_of_no_thread_or_its_own_is_nobodys_end(operation: int, value: int) -> None:
    assert list(thread_waits(main_in_futex(operation, value))) == []
