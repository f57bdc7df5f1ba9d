"""The picture of a path is true: it forks where the path forks, is red where it is stuck, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.block_lines import block_lines
from autopsy.diagnose.diagnosis import Diagnosis, DiskPath
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Cite, Unknown
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import DiskFact, Node
from autopsy.report.draw.request_path import draw_path
from autopsy.report.draw.text_width import elide, width_of
from autopsy.report.html import html
from support import browser, stored

CITE = Cite("evidence/x", 1, "x")


def told(name: str) -> Diagnosis:
    (case,) = (case for case in stored.CASES if case.bundle.parent.name == name)
    return diagnose(gather_facts(open_bundle(case.bundle)))


def node(name: str, driver: str, *children: str, server: str = "") -> Node:
    return Node(name=name, driver=driver, children=children, server=server, cite=CITE)


def disk(*nodes: Node) -> DiskFact:
    no: Any = Unknown("evidence/x", "not looked at")
    return DiskFact(
        name="vd0",
        backend="",
        device="",
        model=no,
        iothread=no,
        nodes=nodes,
        throttle_group=no,
        limits=no,
        io_status=no,
        stats=no,
        stats_again=no,
        completed=no,
        in_flight=no,
        quiesced=no,
        inserted=True,
        cite=CITE,
    )


@pytest.mark.parametrize("name", ["backup-holds-writes-10.0.2", "backup-target-silent-10.0.2"])
def test_a_backup_that_holds_writes_is_a_fork_and_red_on_the_targets_branch_alone(name: str) -> None:
    found = told(name)
    (path,) = found.paths
    (branch,) = path.branches
    assert path.hops[branch.at].detail.startswith("copy-before-write")
    assert branch.words == "target of the backup"
    assert [hop.stuck for hop in branch.hops] == [False, True]
    assert branch.hops[-1].name.startswith("nbd+unix://")
    assert not any(hop.stuck for hop in path.hops)
    assert "its backup's target" in found.headline
    drawn = draw_path(path, 1)
    assert [(station.x > drawn.line_x) for station in drawn.stations if station.stuck] == [True]
    trunk = [station for station in drawn.stations if station.x == drawn.line_x]
    assert all(station.reached for station in trunk), "reads go on"


@pytest.mark.parametrize("name", ["mirror-target-silent-7.2", "mirror-target-silent-10.0.2-debug"])
def test_a_jobs_requests_have_the_jobs_path_and_the_healthy_disk_is_not_red(name: str) -> None:
    job, vd0 = told(name).paths
    assert (job.owner, job.disk, job.hops[-1].stuck) == ("job", "mirror0", True)
    assert job.hops[-1].in_flight
    assert (vd0.owner, vd0.is_stuck) == ("disk", False)


def test_a_quorum_forks_to_each_child_and_an_overlay_to_its_backing_image() -> None:
    quorum = block_lines(
        disk(node("q", "quorum", "a", "b", "c"), node("a", "file"), node("b", "nbd", server="s"), node("c", "file"))
    )
    assert [each.name for each in quorum.trunk] == ["q", "a"]
    assert [(branch.at, branch.words) for branch in quorum.branches] == [
        (0, "child 2 of quorum"),
        (0, "child 3 of quorum"),
    ]
    overlay = block_lines(
        disk(
            node("o", "qcow2", "of", "base"),
            node("of", "file"),
            node("base", "qcow2", "bf"),
            node("bf", "file"),
        )
    )
    assert [each.name for each in overlay.trunk] == ["o", "of"]
    assert [[each.name for each in branch.nodes] for branch in overlay.branches] == [["base", "bf"]]
    assert overlay.branches[0].words == "backing image"


def test_nodes_whose_children_nobody_tells_stay_one_line() -> None:
    lines = block_lines(disk(node("o", "qcow2"), node("of", "file")))
    assert ([each.name for each in lines.trunk], lines.branches) == (["o", "of"], ())


def test_a_ring_of_nodes_ends() -> None:
    lines = block_lines(disk(node("a", "raw", "b"), node("b", "raw", "a")))
    assert [each.name for each in lines.trunk] == ["a", "b"]


@pytest.mark.parametrize("case", stored.CASES, ids=lambda case: case.bundle.parent.name)
def test_only_what_the_verdict_names_is_red(case: Any) -> None:
    found = diagnose(gather_facts(open_bundle(case.bundle)))
    for path in found.paths:
        red = [hop for line in (path.hops, *(branch.hops for branch in path.branches)) for hop in line if hop.stuck]
        assert len(red) <= 1
        if red:
            named = {each.name for each in found.subjects}
            assert any(path.disk in (name, name.removeprefix("job ")) or path.disk in name for name in named)
    if found.where in {"none", "vm-state", "process", "control", "unknown"}:
        assert not any(path.is_stuck for path in found.paths)


def test_a_label_is_elided_by_its_width_in_the_middle() -> None:
    assert elide("/var/lib/vm/d.raw", 200, 14.5, bold=True) == "/var/lib/vm/d.raw"
    shown = elide("W" * 80 + "/d.raw", 200, 14.5, bold=True)
    assert shown.endswith("/d.raw")
    assert "…" in shown
    assert width_of(shown, 14.5, bold=True) <= 200
    assert elide("WWWW", 1, 14.5) == "…"


OVERFLOW = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const its = text.getBoundingClientRect();
    return its.width && (its.right > box.right + 1 || its.left < box.left - 1);
  }).map(text => text.textContent);
})"""


@pytest.mark.parametrize("third", [0, pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.soak)])
def test_no_text_runs_out_of_its_picture_in_a_third_of_the_stored_cases(third: int, tmp_path: Any) -> None:
    """All pictures are laid out on one page: it is a page's loading that takes time."""
    figures: dict[str, None] = {}
    style = ""
    for case in stored.CASES[third::3]:
        page = html(open_bundle(case.bundle))
        style = style or page.partition("<style>")[2].partition("</style>")[0]
        figures |= dict.fromkeys(re.findall(r"<figure.*?</figure>", page, re.DOTALL))
    assert len(figures) > 20
    out = tmp_path / "pictures.html"
    out.write_text(f"<!DOCTYPE html><meta charset=utf-8><style>{style}</style>{''.join(figures)}", encoding="utf-8")
    with browser.chromium() as chromium:
        opened = chromium.new_page(viewport={"width": 1280, "height": 900})
        opened.goto(out.as_uri())
        assert opened.evaluate("document.querySelectorAll('figure svg text').length") > 200
        assert opened.evaluate(OVERFLOW) == []


def test_a_path_without_branches_is_drawn_as_one_line() -> None:
    (path,) = told("nbd-silent-7.2").paths
    drawn = draw_path(replace_branches(path), 1)
    assert {station.x for station in drawn.stations} == {drawn.line_x}
    assert len(drawn.tracks) == len(path.hops) - 1


def replace_branches(path: DiskPath) -> DiskPath:
    return DiskPath(disk=path.disk, hops=path.hops, stuck_at=path.stuck_at)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nbd-silent-10.0.2", "The device itself waits for 0 of these: the others were not asked through it."),
        ("throttle-deadlock-10.0.2-debug", "others were on their way"),
        ("healthy-idle-7.2", ""),
    ],
)
def test_two_numbers_that_differ_on_one_path_are_explained_under_it(name: str, words: str) -> None:
    note = draw_path(told(name).paths[0], 1).note
    assert words in note
    assert bool(note) == bool(words)


def test_an_export_s_path_is_its_clients_and_is_called_no_disk() -> None:
    drawn = draw_path(told("export-frozen-11").paths[0], 1)
    assert drawn.whose == "export export0 (node node0)"
    assert drawn.stations[0].kind == "client"


def test_a_mirror_s_target_is_drawn_beside_the_disk_whose_writes_wait_for_it() -> None:
    paths = {path.disk: path for path in told("mirror-writes-10.0.2").paths}
    waiting, other = paths["vd0"], paths["vd1"]
    assert [hop.kind for hop in waiting.hops] == ["guest", "device", "node", "aio", "host"]
    (branch,) = waiting.branches
    assert (branch.words, [hop.kind for hop in branch.hops], branch.stuck_at) == (
        "target of the mirror",
        ["node", "peer"],
        1,
    )
    assert not other.branches
