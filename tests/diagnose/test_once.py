"""What was asked about one VM's facts is never answered about another's."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor

from autopsy.diagnose.once import once
from autopsy.diagnose.queries.kernel_sleepers import sleepers
from autopsy.diagnose.queries.requests import disks_of
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from support.built import cases


def test_each_question_is_put_once_for_one_vm_and_anew_for_the_next() -> None:
    asked = []

    @once
    def question(facts: Facts, word: str) -> str:
        asked.append(word)
        return f"{facts.vm.name} {word}"

    first, second = (gather_facts(cases.healthy_idle().bundle()) for _ in range(2))
    assert [question(first, "a"), question(first, "a"), question(first, "b")] == ["devvm a", "devvm a", "devvm b"]
    question(second, "a")
    question(first, "a")
    assert asked == ["a", "b", "a"]  # of the first they are known still


def test_what_was_answered_goes_when_the_facts_go() -> None:
    class Answer:
        pass

    @once
    def question(_: Facts) -> Answer:
        return Answer()

    facts = gather_facts(cases.healthy_idle().bundle())
    diagnose(facts)
    answer = weakref.ref(question(facts))
    assert answer() is question(facts)
    del facts
    assert answer() is None


def test_two_vms_in_turn_get_their_own_answers() -> None:
    frozen, well = (gather_facts(case.bundle()) for case in (cases.frozen_threads(), cases.healthy_idle()))
    for _ in range(2):
        assert len(sleepers(frozen)) == 4
        assert sleepers(well) == ()
    for facts in (gather_facts(cases.nbd().bundle()), gather_facts(cases.throttled().bundle())):
        assert isinstance(facts.coroutines, Known)
        for request in facts.coroutines.value:
            assert disks_of(facts, request) == disks_of(facts, request) != ()


def test_vms_that_are_diagnosed_side_by_side_are_diagnosed_as_one_by_one() -> None:
    made = (cases.nbd, cases.frozen_threads, cases.healthy_idle, cases.stopped, cases.deadlock, cases.frozen_native)
    facts = [gather_facts(make().bundle()) for make in made]
    alone = [diagnose(each) for each in facts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(diagnose, facts)) == alone
