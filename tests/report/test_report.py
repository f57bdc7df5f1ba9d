"""The report says what the diagnosis says, harms nobody, and leads to its evidence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import WaitEdge, WaitGraph, WaitNode
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Cite
from autopsy.facts.gather import gather_facts
from autopsy.report.draw.wait_graph import BOX_HEIGHT, BOX_WIDTH, draw_waits
from autopsy.report.excerpts import Excerpts
from autopsy.report.html import environment, html, with_kill
from autopsy.text import visible
from support import reports
from support.built import evidence as e

BIDI = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.fixture(scope="module", params=[path.name for path in reports.STORED])
def stored(request: pytest.FixtureRequest) -> tuple[Path, str]:
    path = reports.FIXTURES / request.param / "bundle.tar.zst"
    return path, html(open_bundle(path))


def test_every_cite_of_a_stored_case_lands_on_its_target_and_no_id_is_there_twice(stored: tuple[Path, str]) -> None:
    page = reports.seen(stored[1])
    assert set(page.links) - set(page.ids) == set()
    assert len(page.ids) == len(set(page.ids))
    assert [link for link in page.links if link.startswith("at-")]


def test_a_report_says_the_headline_and_each_finding_in_the_diagnosis_s_own_words(stored: tuple[Path, str]) -> None:
    path, page = stored
    diagnosis = diagnose(gather_facts(open_bundle(path)))
    text = reports.seen(page).text
    for sentence in (diagnosis.headline, *(claim.text for claim in diagnosis.chain), *diagnosis.footprint):
        assert " ".join(sentence.replace("`", " ").split()) in text.replace("`", " ")


def test_a_report_needs_no_network_and_no_script(stored: tuple[Path, str]) -> None:
    for tag, attributes in reports.seen(stored[1]).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "img", "base"}
        assert not {"src", "srcset", "style", "background"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in stored[1].replace("url(#tip", "")
    assert "@import" not in stored[1]


def test_names_that_a_guest_chose_are_text_and_what_cannot_be_seen_is_shown() -> None:
    page = html(reports.hostile().bundle(), kill=f"2026-06-11T16:47:42Z: {reports.HOSTILE}")
    assert "<script>alert" not in page
    assert not set(page) & set(BIDI)
    assert "\x1b" not in page
    assert "x\\u202egnp.&lt;script&gt;alert(1)&lt;/script&gt;\\n\\x1b[31m" in page
    found = reports.seen(page)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "b" not in {tag for tag, attributes in found.tags if attributes}
    assert set(found.links) - set(found.ids) == set()


@given(some.text())
def test_everything_visible_can_be_seen_and_stands_on_one_line(text: str) -> None:
    assert visible(text).isprintable()


@given(some.text(some.characters(categories=("L", "N", "P", "S"))))
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert visible(text) == text or visible(text).count("\\") > text.count("\\")


def test_no_template_can_forget_to_escape_or_to_show() -> None:
    shown = environment().from_string("{{ name }}<p title='{{ name }}'>").render(name="<a>\u202e'\ud800")
    assert shown == "&lt;a&gt;\\u202e&#39;\\ud800<p title='&lt;a&gt;\\u202e&#39;\\ud800'>"


def test_a_bundle_that_holds_nothing_but_its_manifest_still_has_a_report() -> None:
    page = html(e.Fake(e.Case().bundle().manifest, {}))
    text = reports.seen(page).text
    assert "What cannot be told" in text
    assert "The threads cannot be told" in text


def test_both_clocks_stand_side_by_side_for_the_capture_and_for_the_kill() -> None:
    page = html(reports.crowd(1, 0).bundle(), kill="2026-06-11T16:47:42.5+00:00: SIGKILL; gone after 12 ms")
    text = reports.seen(page).text
    assert "2026-06-11 15:21:00 UTC 2026-06-11 18:21:00 +0300 EEST" in text
    assert "2026-06-11 16:47:42 UTC (2026-06-11 19:47:42 +0300 EEST): SIGKILL; gone after 12 ms" in text


@pytest.mark.parametrize("words", ["SIGKILL; gone after 12 ms", reports.HOSTILE, "without a moment"])
def test_a_kill_that_is_written_into_a_finished_report_reads_as_if_it_had_been_there(words: str) -> None:
    bundle = reports.hostile().bundle()
    kill = words if words.startswith("without") else f"2026-06-11T16:47:42Z: {words}"
    assert with_kill(html(bundle).encode(), kill, bundle.manifest.began).decode() == html(bundle, kill=kill)


def test_five_hundred_threads_and_a_thousand_coroutines_stay_under_three_megabytes() -> None:
    page = html(reports.crowd(480, 1000).bundle())
    assert len(page.encode()) < 3_000_000
    assert "1,000 parked coroutines" in page


def test_threads_with_one_and_the_same_stack_are_told_together() -> None:
    case = e.Case()
    case.idle_threads()
    for number in range(64):
        case.thread(6000 + number, "worker", frames=("pread64", "handle_aiocb_rw"), stack=("io_schedule",), state="D")
    page = html(case.bundle())
    assert "64 workers" in page
    assert page.count("handle_aiocb_rw</b>") == 1


def excerpts(**files: bytes) -> Excerpts:
    return Excerpts(e.Fake(e.Case().bundle().manifest, {name.replace("_", "."): data for name, data in files.items()}))


def test_a_cite_into_json_finds_the_line_that_holds_its_address() -> None:
    found = excerpts(locks_json=b'[\n {\n  "address": 4096,\n  "owner": 7\n },\n {\n  "address": 8192\n }\n]\n')
    assert found.link(Cite("locks.json", 0, "mutex 0x2000, owner 7")).label == "locks.json:7"
    assert found.link(Cite("locks.json", 3, "coroutine 0x1000, number 1")).label == "locks.json:3"


def test_a_cite_of_a_thread_s_state_leads_to_the_line_that_tells_it() -> None:
    found = excerpts(tasks_txt=b"==> task/7/status (40 bytes) <==\nName:\tx\nUmask:\t0022\nState:\tD (disk sleep)\n")
    assert found.link(Cite("tasks.txt", 2, "task 7: State D")).label == "tasks.txt:4"
    assert found.link(Cite("tasks.txt", 2, "task 7: kernel stack")).label == "tasks.txt:2"


def test_a_line_as_long_as_an_answer_is_cut_around_what_it_is_cited_for() -> None:
    found = excerpts(qmp_jsonl=b"x" * 5000 + b'"device":"drive-scsi0"' + b"y" * 5000 + b"\n")
    found.link(Cite("qmp.jsonl", 1, "blockstats of drive-scsi0"))
    line = found.all()[0].pieces[0][0]
    assert "drive-scsi0" in line.rest
    assert len(line.text + line.rest) < 500
    assert line.cut > 9000


def test_a_cite_of_a_file_that_is_not_there_lands_where_the_report_says_so() -> None:
    found = excerpts()
    link = found.link(Cite("evidence/host/host.txt", 12, "PSI"))
    assert found.all()[0].target == link.target
    assert found.all()[0].note == "This bundle does not hold it."


def test_files_whose_names_look_alike_in_an_id_are_kept_apart() -> None:
    found = Excerpts(e.Fake(e.Case().bundle().manifest, {"a b": b"1\n", "a/b": b"2\n"}))
    assert found.link(Cite("a b", 1)).target != found.link(Cite("a/b", 1)).target


nodes = some.integers(0, 11).map("thread {}".format)


@given(some.lists(some.tuples(nodes, nodes, some.booleans()), min_size=1, max_size=40))
def test_whoever_waits_for_whom_is_drawn_without_two_boxes_at_one_place(edges: list[tuple[str, str, bool]]) -> None:
    names = {name for waiter, holder, _ in edges for name in (waiter, holder)}
    graph = WaitGraph(
        nodes=tuple(WaitNode(id=name, kind="thread", label=name) for name in sorted(names)),
        edges=tuple(WaitEdge(waiter=one, holder=two, label="waits for", in_cycle=ring) for one, two, ring in edges),
    )
    drawn = draw_waits(graph)
    assert drawn is not None
    places = {(box.x, box.y) for box in drawn.boxes}
    assert len(places) == len(drawn.boxes)
    assert all(x + BOX_WIDTH <= drawn.width and y + BOX_HEIGHT <= drawn.height for x, y in places)


def test_a_deadlock_s_ring_is_drawn_and_said() -> None:
    page = html(reports.hostile().bundle())
    assert "A red arrow is part of a ring" in page
    assert re.search(r'stroke="#b3261e" stroke-width="2" marker-end="url\(#tip-hot\)"', page)
    assert "part of a ring</strong>" in page
