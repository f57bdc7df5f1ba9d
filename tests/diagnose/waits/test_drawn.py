"""The drawing leads from who waits to the end of the waiting, which alone is marked, and stays small."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import WaitGraph
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.report.draw.wait_graph import draw_waits
from support import stored
from support.built import cases
from support.built import evidence as e


def way(graph: WaitGraph, start: str) -> list[str]:
    """Follow the first arrow from each box on."""
    found = [start]
    while after := [edge.holder for edge in graph.edges if edge.waiter == found[-1]]:
        found.append(after[0])
    return found


def ends(graph: WaitGraph) -> list[str]:
    return [node.label for node in graph.nodes if node.end]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("drain-over-nbd-7.2", "qemu-nbd 15645"),
        ("fuse-silent-7.2", "qemu-storage-da 14987"),
        ("throttle-timer-7.2", "throttle group limits"),
        ("frozen-threads-7.2", "/var/lib/vm/ext4"),
    ],
)
def test_a_stored_case_has_one_end_and_it_is_what_the_verdict_blames(name: str, end: str) -> None:
    (case,) = (each for each in stored.CASES if each.home.name == name)
    found = diagnose(gather_facts(open_bundle(case.bundle)))
    assert ends(found.waits) == [end]
    assert any(end in each for each in found.objects)


def test_a_request_that_waits_for_two_things_is_one_request_in_its_box() -> None:
    (case,) = (each for each in stored.CASES if each.home.name == "nbd-silent-10.0.2")
    graph = diagnose(gather_facts(open_bundle(case.bundle))).waits
    assert sorted(node.label for node in graph.nodes if node.kind == "coroutine") == ["2 requests", "6 requests"]


def test_a_thousand_requests_and_the_drain_that_waits_for_them_are_a_handful_of_boxes() -> None:
    case = cases.nbd()
    case.parked(e.NBD, 1000)
    case.main_loop = records.MainLoop(tid=e.PID, state="nested poll", under="bdrv_drain_all_begin")
    graph = diagnose(gather_facts(case.bundle())).waits
    assert len(graph.nodes) < 12
    assert way(graph, f"thread {e.PID}")[-1] == "peer qemu-nbd 900"
    drawn = draw_waits(graph)
    assert drawn is not None
    assert [box.lines for box in drawn.boxes if box.is_end] == [("qemu-nbd 900",)]
