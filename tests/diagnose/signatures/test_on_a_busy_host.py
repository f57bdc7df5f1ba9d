"""What a busy host let be seen of a VM: a thread met awake between two polls, a monitor that got no time to answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Fact, Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts, Movement, Role, Syscall, ThreadFact, ThreadSnapshot
from support import stored
from support.built import evidence as e


def silent_iscsi() -> Facts:
    case = next(case for case in stored.CASES if case.home.name == "iscsi-mute-7.2")
    return gather_facts(open_bundle(case.bundle))


def awake(look: Fact[ThreadSnapshot]) -> Known[ThreadSnapshot]:
    assert isinstance(look, Known)
    return Known(replace(look.value, state="R", wchan="", syscall=Syscall(None, ""), kernel_stack=()), look.cite)


def told(*looks: str, cpu_share: float = 0.0, waited_share: float = 0.0) -> Diagnosis:
    """Return what is said where the main thread was awake at these looks, and so much of the time between them."""
    facts = silent_iscsi()
    assert isinstance(facts.threads, Known)

    def met(thread: ThreadFact) -> ThreadFact:
        if thread.role is not Role.MAIN:
            return thread
        first = awake(thread.first) if "first" in looks else thread.first
        again = awake(thread.again) if "again" in looks else thread.again
        between = Movement(4.0, int(cpu_share * 4e9), int(waited_share * 4e9), 5)
        return replace(thread, first=first, again=again, movement=Known(between, facts.threads.cite))

    return diagnose(replace(facts, threads=Known(tuple(map(met, facts.threads.value)), facts.threads.cite)))


@pytest.mark.parametrize("look", ["first", "again"])
def test_one_that_was_met_awake_between_two_polls_is_told_by_the_other_look(look: str) -> None:
    verdict = told(look)
    assert (verdict.signature, verdict.confidence) == ("peer-blocks-thread", "likely")
    assert "in poll on fd" in verdict.chain[0].text


@pytest.mark.parametrize("look", ["first", "again"])
def test_one_that_works_meanwhile_or_got_no_processor_is_not_said_to_wait_for_its_peer(look: str) -> None:
    assert told(look, cpu_share=0.3).signature != "peer-blocks-thread"
    assert told(look, waited_share=0.3).signature != "peer-blocks-thread"


def test_one_that_nobody_saw_asleep_is_not_said_to_wait_for_its_peer() -> None:
    assert told("first", "again").signature != "peer-blocks-thread"


@pytest.mark.parametrize(
    ("ms", "signatures"), [(45.0, set()), (2000.0, {"monitor-unanswered"})], ids=["cut short", "waited for"]
)
@pytest.mark.parametrize(("question", "outcome"), [("(greeting)", "silent"), ("qmp_capabilities", "no answer")])
def test_a_monitor_that_got_no_time_to_answer_is_not_said_to_be_silent(
    question: str, outcome: str, ms: float, signatures: set[str]
) -> None:
    case = e.Case()
    case.idle_threads()
    case.asked(question, None, outcome=outcome, ms=ms)
    verdict = diagnose(gather_facts(case.bundle()))
    told_of = {verdict.signature, *(other.signature for other in verdict.secondary)}
    assert told_of & {"monitor-unanswered", "monitor-held"} == signatures
