"""Which finding is the cause is read from the graph of waits: who leads to another's end is secondary to it."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose import verdict
from autopsy.diagnose.signature import CannotTell
from autopsy.diagnose.signature import Signature as OneSignature
from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits.graph import Graph, build
from autopsy.diagnose.waits.leads import NOWHERE, leads
from autopsy.diagnose.waits.wait import Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from support import stored
from support.built import cases
from support.built import evidence as e


def thread(number: int) -> subjects.Thread:
    return subjects.Thread(number)


def graph(*pairs: tuple[int, int]) -> Graph:
    waits = tuple(Wait(thread(one), thread(other), How.HELD_BY, Certainty.SEEN) for one, other in pairs)
    return Graph(waits, (thread(1), thread(2)), ())


def test_who_waits_over_others_for_an_end_is_held_by_it_and_never_the_other_way_round() -> None:
    found = leads(graph((1, 5), (5, 9)))
    assert found.of([thread(1)]).is_held(found.of([thread(9)]))
    assert found.of([thread(5)]).is_held(found.of([thread(9)]))
    assert not found.of([thread(9)]).is_held(found.of([thread(1)]))
    assert not found.of([thread(1)]).is_held(found.of([thread(5)]))  # which is no end itself


def test_two_ends_hold_each_other_s_waiters_and_not_each_other() -> None:
    found = leads(graph((1, 8), (2, 9)))
    assert not found.of([thread(1)]).is_held(found.of([thread(9)]))
    assert not found.of([thread(8)]).is_held(found.of([thread(9)]))
    assert not found.of([thread(8), thread(2)]).is_held(found.of([thread(9)]))  # that finding is of an end of its own


def test_a_ring_is_one_end() -> None:
    found = leads(graph((1, 5), (5, 6), (6, 5)))
    assert found.of([thread(5)]).own == {thread(5)}
    assert found.of([thread(1)]).is_held(found.of([thread(6)]))
    assert not found.of([thread(5)]).is_held(found.of([thread(6)]))


@pytest.mark.parametrize(
    ("name", "effect", "cause"),
    [
        ("frozen-native-7.2", "io-submit-blocks", "host-fs-frozen"),
        ("migrate-file-stalled-10.0.2", "migration-send-blocked", "host-fs-frozen"),
        ("fuse-opening-10.0.2-debug", "bql-holder-blocked", "fuse-daemon-silent"),
    ],
)
def test_on_a_stored_case_it_is_the_graph_that_says_what_waits_for_what(
    name: str, effect: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = (each for each in stored.CASES if each.home.name == name)
    facts = gather_facts(open_bundle(case.bundle))
    because = {each.signature: each.because_of for each in diagnose(facts).secondary}
    assert because[effect] == cause
    monkeypatch.setattr(verdict, "leads", lambda _: NOWHERE)
    blind = diagnose(facts)
    assert blind.signature == effect or effect not in {
        each.signature for each in blind.secondary if each.because_of == cause
    }


def test_an_end_that_no_signature_names_is_told_with_its_kind_and_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.nbd()
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under="bdrv_drain_all_begin")
    facts = gather_facts(case.bundle())
    blind = tuple(
        OneSignature(each.id, each.where, each.title, lambda _: CannotTell("x")) for each in verdict.SIGNATURES
    )
    monkeypatch.setattr(verdict, "SIGNATURES", blind)
    found = diagnose(facts)
    assert (found.where, found.signature) == ("unknown", "unknown")
    assert "wait for qemu-nbd 900 (peer)" in found.headline
    assert [each.kind for each in found.subjects] == ["peer"]


def test_where_nobody_waits_no_end_is_told() -> None:
    assert build(gather_facts(cases.healthy_idle().bundle())).ends.sinks == {}
