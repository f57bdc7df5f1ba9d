"""What unstable questions used to tell comes from stable ones, or is told to be unknown; no answer becomes another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import DiskFact
from support import amputate, stored
from support.built import evidence as e


def without_unstable(body: amputate.Body) -> amputate.Body:
    """Return the capture as it would have been had nothing unstable been asked."""
    for path in [path for path in body.files if path.endswith(f"/{layout.QMP}")]:
        lines = body.files[path].splitlines(keepends=True)
        body = body.having(path, b"".join(line for line in lines if not json.loads(line)["question"].startswith("x-")))
    return body


@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.home.name)
def test_a_stored_case_is_diagnosed_the_same_without_its_unstable_answers(case: stored.Stored) -> None:
    body = amputate.Body(open_bundle(case.bundle).manifest, stored.files(case.bundle))
    whole, less = diagnose(gather_facts(body)), diagnose(gather_facts(without_unstable(body)))
    assert (less.where, less.signature, less.confidence) == (whole.where, whole.signature, whole.confidence)
    # That the server is a backup's target, of a QEMU that names no children, the drawn graph alone tells.
    assert (less.headline, less.objects) == (whole.headline.replace("its backup's target, ", ""), whole.objects)


NBD = "nbd+unix:///?socket=/run/nbd.sock"
BACKED_UP = {"node-name": "cbw0", "drv": "copy-before-write", "image": {"filename": "/d0.raw"}}
TARGET = {"node-name": "target0", "drv": "nbd", "image": {"filename": NBD}}


def branching(*nodes: dict[str, Any], disks: tuple[dict[str, Any], ...]) -> e.Case:
    """A QEMU of whose disk a backup holds the writes, with four requests that wait for an NBD server."""
    case = e.Case()
    case.idle_threads()
    case.monitor()
    case.disks(*disks)
    case.asked("query-named-block-nodes", list(nodes), step=layout.QUERY_BLOCK)
    case.parked(e.NBD, 4)
    return case


def disks_of(case: e.Case) -> dict[str, DiskFact]:
    found = gather_facts(case.bundle()).disks
    assert isinstance(found, Known)
    return {disk.name: disk for disk in found.value}


def a_disk(name: str, top: dict[str, Any]) -> dict[str, Any]:
    made = e.disk(name, driver=top["drv"], file=top["image"]["filename"])
    made["block"]["inserted"] |= top
    return made


def test_the_children_that_a_node_names_are_followed() -> None:
    children = [{"child": "target", "node-name": "target0"}, {"child": "file", "node-name": "file0"}]
    top = {**BACKED_UP, "children": children}
    case = branching(top, TARGET, {"node-name": "file0", "drv": "file"}, disks=(a_disk("d0", top),))
    assert [node.name for node in disks_of(case)["d0"].nodes] == ["cbw0", "target0", "file0"]
    assert "4 requests of disk d0 wait for the NBD server " + NBD in diagnose(gather_facts(case.bundle())).headline


def test_a_backing_file_is_followed_in_the_counters() -> None:
    case = e.Case()
    case.idle_threads()
    case.monitor()
    counters = {
        "device": "d0",
        "node-name": "top",
        "stats": {},
        "parent": {"node-name": "top.file", "stats": {}, "driver-specific": {"driver": "file"}},
        "backing": {"node-name": "base", "stats": {}, "parent": {"node-name": "base.nbd", "stats": {}}},
    }
    case.asked("query-blockstats", [counters])
    case.asked(
        "query-block", [{"device": "d0", "inserted": {"node-name": "top", "drv": "qcow2"}}], step=layout.QUERY_BLOCK
    )
    assert [node.name for node in disks_of(case)["d0"].nodes] == ["top", "top.file", "base", "base.nbd"]


def test_a_server_below_a_branch_that_was_not_told_is_still_named() -> None:
    case = branching(BACKED_UP, TARGET, disks=(a_disk("d0", BACKED_UP),))
    found = diagnose(gather_facts(case.bundle()))
    assert found.signature == "nbd-silent"
    assert "4 requests of disk d0 wait for the NBD server " + NBD in found.headline


def test_a_disk_with_an_nbd_node_is_not_blamed_where_another_s_backup_may_write_to_one() -> None:
    other = {"node-name": "n1", "drv": "nbd", "image": {"filename": "nbd://other:10809"}}
    case = branching(BACKED_UP, TARGET, other, disks=(a_disk("d0", BACKED_UP), a_disk("d1", other)))
    found = gather_facts(case.bundle())
    assert isinstance(found.coroutines, Known)
    assert {type(each.disk).__name__ for each in found.coroutines.value} == {"Unknown"}
    assert diagnose(found).headline == "4 requests of a disk that cannot be named wait for the NBD server"


@pytest.mark.parametrize(
    "children", [7, "x", [7], [[]], [{"child": 1, "node-name": {}}], [{"child": "file", "node-name": "cbw0"}]]
)
def test_no_list_of_children_raises_or_runs_in_circles(children: object) -> None:
    top = {**BACKED_UP, "children": children}
    assert "d0" in disks_of(branching(top, disks=(a_disk("d0", top),)))
