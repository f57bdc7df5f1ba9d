"""The graph of waits ends where the verdict says that the cause is, and no bundle makes it endless."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from autopsy.bundle import records
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits import graph
from autopsy.diagnose.waits.ends import MOST_ENDS, ends
from autopsy.diagnose.waits.wait import MOST_WAITS, Certainty, How, Wait
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from support import stored
from support.built import cases
from support.built import evidence as e

# Cases whose waiting ends at more than the cause, each for its reason.
BESIDE = {
    "mirror-target-silent-10.0.2-debug": (
        "block",
        "what the holder of its own lock waits for has no edge yet",
    ),
    "throttle-deadlock-10.0.2-debug": ("control", "a lock that was just being handed over has no owner"),
    "dumping-into-frozen-7.2": ("host", "the writing of its core waits, and that is not why it crashed"),
    "fifo-unread-7.2": ("peer", "what a dead main loop waits for is told with it: the program that does not read"),
    "fifo-opener-stopped-7.2": ("peer", "likewise: the program that is stopped in open"),
    "snapshot-unread-10.0.2": ("peer", "whoever reads the VM's state is told with the migration that waits for it"),
    "vm-ended-10.0.2": ("aio", "its writes were met at the only look, as on any busy VM"),
    "throttle-deadlock-10.0.2": ("control", "without debug information a lock does not tell which group's it is"),
}


@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.home.name)
def test_where_the_waiting_ends_is_where_the_verdict_is(case: stored.Stored) -> None:
    facts = gather_facts(open_bundle(case.bundle))
    found = graph.build(facts)
    assert found.trouble == ()
    more, _ = BESIDE.get(case.home.name, ("", ""))
    places = {graph.where(sink) for sink in found.ends.sinks}
    assert places <= {diagnose(facts).where, more}


def test_the_end_of_a_silent_server_is_its_process_and_every_request_waits_for_it() -> None:
    case = cases.nbd()
    case.parked(e.NBD, 3)
    sinks = graph.build(gather_facts(case.bundle())).ends.sinks
    assert list(sinks) == [subjects.Peer(900)]
    assert len([each for each in sinks[subjects.Peer(900)] if isinstance(each, subjects.Request)]) == 4


def test_a_drain_ends_where_the_request_does_that_it_waits_for() -> None:
    case = cases.nbd()
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under="bdrv_drain_all_begin")
    sinks = graph.build(gather_facts(case.bundle())).ends.sinks
    assert subjects.Thread(e.PID) in sinks[subjects.Peer(900)]


def test_requests_that_go_on_wait_for_nobody() -> None:
    assert graph.build(gather_facts(cases.healthy_busy().bundle())).ends.sinks == {}


def thread(number: int) -> subjects.Thread:
    return subjects.Thread(number)


def chain(*numbers: int) -> list[Wait]:
    return [Wait(thread(one), thread(other), How.HELD_BY, Certainty.SEEN) for one, other in pairwise(numbers)]


def test_a_ring_is_no_sink_and_whoever_waits_for_it_is_told() -> None:
    found = ends(chain(1, 2, 3, 4, 2), [thread(1)])
    assert found.sinks == {}
    assert found.rings == {frozenset(map(thread, (2, 3, 4))): frozenset({thread(1)})}


def test_a_thread_that_waits_for_itself_is_a_ring_of_one() -> None:
    assert list(ends(chain(1, 1), [thread(1)]).rings) == [frozenset({thread(1)})]


def test_two_sinks_are_told_each_with_its_own_waiters() -> None:
    found = ends(chain(1, 3) + chain(2, 4), [thread(1), thread(2)])
    assert found.sinks == {thread(3): frozenset({thread(1)}), thread(4): frozenset({thread(2)})}


def test_what_nothing_that_must_not_wait_leads_to_is_no_end() -> None:
    assert ends(chain(1, 2), [thread(9)]).sinks == {}


def test_a_ring_of_ten_thousand_and_a_chain_as_long_come_to_an_end() -> None:
    ring = ends(chain(*range(10_000), 0), [thread(0)])
    assert [len(each) for each in ring.rings] == [10_000]
    assert list(ends(chain(*range(10_000)), [thread(0)]).sinks) == [thread(9_999)]


def test_a_chain_each_of_whose_links_has_an_end_of_its_own_is_told_in_part() -> None:
    links = chain(*range(10_000))
    links += [wait for number in range(10_000) for wait in chain(number, 100_000 + number)]
    assert len(ends(links, [thread(0)]).sinks) == MOST_ENDS


def test_a_name_of_a_megabyte_is_a_subject_like_others() -> None:
    server = subjects.Server("x" * (1 << 20))
    assert list(ends([Wait(thread(1), server, How.PARKED_AT, Certainty.ONCE)], [thread(1)]).sinks) == [server]


def test_a_builder_that_fails_costs_its_own_edges_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Facts) -> Iterator[Wait]:
        yield chain(1, 2)[0]
        raise ValueError("no such thing")

    monkeypatch.setattr(graph, "BUILDERS", (("broken", broken), *graph.BUILDERS))
    found = graph.build(gather_facts(cases.nbd().bundle()))
    assert found.trouble == ("broken: ValueError: no such thing",)
    assert list(found.ends.sinks) == [subjects.Peer(900)]


def test_more_waits_than_any_vm_has_are_cut_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: Facts) -> Iterator[Wait]:
        while True:
            yield chain(1, 2)[0]

    monkeypatch.setattr(graph, "BUILDERS", (("endless", endless),))
    found = graph.build(gather_facts(cases.nbd().bundle()))
    assert len(found.waits) == MOST_WAITS
    assert "left out" in found.trouble[0]
