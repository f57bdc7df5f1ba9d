"""Where a limit of ours bit, the diagnosis says so; a number that was cut is one at least, and proves nothing."""

from __future__ import annotations

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.records import Heap, HeapSnapshot
from autopsy.bundle.heap.virtio import RingsLook
from autopsy.bundle.records import LeftOut
from autopsy.bundle.sections import REST, Section, render
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.facts.storage import disks, nodes
from support.built import cases
from support.built import evidence as e

MORE_COROUTINES = LeftOut(what="there are more coroutines than are told", why="65536 were read", requests=True)


def with_file(case: e.Case, step: str, file: str, data: bytes) -> e.Fake:
    """Return a bundle with this file, or with these sections more in one that is there."""
    bundle = case.bundle()
    path = layout.evidence(step, file)
    before = bundle.files.get(path, b"") if data.startswith(b"==> ") else b""
    return e.Fake(bundle.manifest, {**bundle.files, path: before + data})


def told(bundle: e.Fake) -> dict[str, str]:
    """Return what a diagnosis of it cannot tell for a limit of ours, with the reason."""
    texts = {each.what for each in gather_facts(bundle).left_out}
    found = {each.text: each.missing for each in diagnose(gather_facts(bundle)).cannot_tell}
    return {text: why for text, why in found.items() if text in texts}


@pytest.mark.parametrize(
    ("step", "file", "name"),
    [
        (layout.WITNESS, layout.FDS, "fd"),
        (layout.PROC_FDS, layout.FDS, "fdinfo"),
        (layout.PROC_FDS, layout.FDS, "mountinfo"),
        (layout.PROC_FDS, layout.SOCKETS, "peer"),
        (layout.PROC_FDS, layout.SOCKETS, "peer/17/task"),
        (layout.PROC_FDS, layout.SOCKETS, "net/unix"),
        (layout.PROC_FDS, layout.SOCKETS, "layers"),
        (layout.PROC_FDS, layout.IMAGES, "image"),
        (layout.HOST, layout.HOST_FILES, "cgroup"),
        (layout.HOST, layout.HOST_FILES, "block-devices"),
        (layout.HOST, layout.HOST_FILES, "storage"),
        (layout.SECOND_EXPOSURE, layout.HOST_FILES, "block-devices"),
        (layout.PROC_STACKS, layout.TASKS, "task/7/stack"),
    ],
)
def test_a_section_that_was_cut_is_told(step: str, file: str, name: str) -> None:
    cut = render([Section(f"{name}{REST}", b"", error="12 more were not looked at")])
    assert told(with_file(cases.healthy_idle(), step, file, cut)) == {
        f"there is more of {name} than is told": "12 more were not looked at"
    }


@pytest.mark.parametrize("step", [*layout.STEPS, layout.UNSTABLE])
def test_what_a_step_left_out_is_told(step: str) -> None:
    data = msgspec.json.encode([LeftOut(what="there are more throttle groups than are told", why="6 were not asked")])
    bundle = with_file(cases.healthy_idle(), step, layout.LEFT_OUT, data)
    assert told(bundle) == {"there are more throttle groups than are told": "6 were not asked"}


def test_a_list_of_qemus_that_was_cut_is_told() -> None:
    data = msgspec.json.encode(Heap(first=HeapSnapshot(taken_ns=1, cut=("tracked requests of d0",))))
    (limit,) = gather_facts(with_file(cases.healthy_idle(), layout.GDB_THREADS, layout.HEAP, data)).left_out
    assert (limit.why, limit.requests) == ("tracked requests of d0", True)


def test_rings_that_were_not_read_are_told() -> None:
    data = msgspec.json.encode(RingsLook(taken_ns=1, words=(), more=9))
    bundle = with_file(cases.healthy_idle(), layout.SECOND_EXPOSURE, layout.RING_WORDS, data)
    assert list(told(bundle).values()) == ["9 were not read"]


def test_disks_and_nodes_beyond_as_many_as_facts_tell_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = cases.healthy_busy().bundle()
    assert told(bundle) == {}
    monkeypatch.setattr(disks, "MOST_DISKS", 0)
    monkeypatch.setattr(nodes, "MOST_NODES", 0)
    assert set(told(bundle)) == {"there are more disks than are told", nodes.MORE}


def test_a_number_of_requests_that_was_cut_is_told_as_one_at_least_and_is_not_proven() -> None:
    whole = diagnose(gather_facts(cases.throttled(bps_total=1).bundle()))
    data = msgspec.json.encode([MORE_COROUTINES])
    cut = diagnose(gather_facts(with_file(cases.throttled(bps_total=1), layout.GDB_THREADS, layout.LEFT_OUT, data)))
    assert (whole.signature, whole.confidence) == (cut.signature, "proven")
    assert cut.confidence == "likely"
    assert cut.headline == f"at least {whole.headline}"
    assert "at least these" in next(each.text for each in cut.cannot_tell if each.missing == MORE_COROUTINES.why)


def test_no_vm_is_proven_healthy_whose_requests_may_have_been_cut() -> None:
    data = msgspec.json.encode([MORE_COROUTINES])
    case = cases.healthy_busy()
    case.coroutines = [coroutine for coroutine in case.coroutines if coroutine.since_first == "moved"]
    found = diagnose(gather_facts(with_file(case, layout.GDB_THREADS, layout.LEFT_OUT, data)))
    assert (found.where, found.confidence) == ("none", "likely")
    assert diagnose(gather_facts(case.bundle())).confidence == "proven"
