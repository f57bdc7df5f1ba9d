"""The post-mortem draft, the bug report and the JSON are whole, plain and, where they go outside, redacted."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from markdown_it import MarkdownIt

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.known_bugs import BUGS
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import ExitCode, UsageError
from autopsy.facts.gather import gather_facts
from autopsy.redact.text import Redaction
from autopsy.report import markdown
from autopsy.report.bug_report import bug_report
from autopsy.report.json_document import Document, document, schema
from autopsy.report.post_mortem import post_mortem
from autopsy.report.render import render, store
from support import reports
from support.built import cases
from support.built import evidence as e

SECTIONS = (
    "Impact",
    "Timeline (UTC; the host's own clock runs +0300 EEST)",
    "Detection",
    "Root cause",
    "Ruled out (evidence, not vibes)",
    "What we could not prove",
    "Fixes",
    "Open follow-ups",
    "What the capture did to the VM",
)
TRACKER = (
    "Host environment",
    "Emulated/Virtualized environment",
    "Description of problem",
    "Steps to reproduce",
    "Additional information",
)


def read(text: str) -> list[Any]:
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)


def headings(text: str) -> list[str]:
    tokens = read(text)
    return [tokens[place + 1].content for place, token in enumerate(tokens) if token.tag == "h2" and token.nesting == 1]


def draft(case: e.Case, kill: str = "") -> str:
    bundle = case.bundle()
    facts = gather_facts(bundle)
    return post_mortem(bundle.manifest, facts, diagnose(facts), kill=kill, bundle="autopsy-devvm.tar.zst")


def bug(case: e.Case) -> str:
    bundle = case.bundle()
    facts = gather_facts(bundle)
    return bug_report(bundle.manifest, facts, diagnose(facts))


def inner_tokens(text: str) -> set[str]:
    return {child.type for token in read(text) for child in token.children or ()}


def test_a_post_mortem_has_the_sections_of_one_and_marks_what_a_person_must_fill_in() -> None:
    text = draft(reports.hostile(), "2026-06-11T16:47:42Z: SIGKILL; gone after 12 ms")
    assert tuple(headings(text)) == SECTIONS
    impact = text.partition("## Impact")[2].partition("##")[0]
    timeline = text.partition("## Timeline")[2].partition("##")[0]
    assert "**TO FILL IN**" in impact
    assert "**TO FILL IN**" in timeline
    assert "2026-06-11 16:47:42 UTC (2026-06-11 19:47:42 +0300 EEST): SIGKILL; gone after 12 ms" in timeline
    assert "`locks.json" in text or "gdb.threads/locks.json" in text


def test_a_post_mortem_tells_the_vm_s_own_times_and_folds_what_a_ticket_need_not_show() -> None:
    text = draft(cases.nbd())
    timeline = text.partition("## Timeline")[2].partition("\n## ")[0].partition("<details>")[0]
    assert "first seen stuck" in timeline
    assert "Collected" not in timeline
    outside = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "Not that" not in outside
    assert text.count("<details>") == text.count("</details>") > 2
    assert "| now | `" in text


@pytest.mark.parametrize("case", [cases.nbd, cases.frozen_threads, cases.stopped, cases.throttled, cases.healthy_idle])
def test_a_bug_report_of_what_is_not_qemu_s_says_so_first(case: Callable[[], e.Case]) -> None:
    assert bug(case()).startswith("> **Do not post this: it is not QEMU's fault.**")


def test_a_bug_report_of_a_bug_of_qemu_s_does_not() -> None:
    assert "Do not post this" not in bug(cases.deadlock())


def test_a_known_bug_is_linked_to_its_own_page_or_not_at_all() -> None:
    assert all(not bug.link or bug.link.count("/") > len(["https:", "", "host", "group", "project"]) for bug in BUGS)
    bundle = open_bundle(reports.FIXTURES / "out-of-space-10.0.2" / "bundle.tar.zst")
    facts = gather_facts(bundle)
    diagnosis = diagnose(facts)
    text = bug_report(bundle.manifest, facts, diagnosis)
    assert "Upgrade first" in text
    assert "<>" not in text
    assert diagnosis.headline == "Disk vd0 (disk0) is out of space: QEMU paused the VM (run state io-error)"


def test_a_bar_in_code_stays_one_in_a_table() -> None:
    assert markdown.row(markdown.code("a | b"), markdown.plain("c|d")) == r"| `a \| b` | c\|d |"


def test_a_guest_s_names_make_no_markup_in_a_post_mortem() -> None:
    found = inner_tokens(draft(reports.hostile()))
    assert "html_inline" not in found
    assert "image" not in found
    assert "em_open" not in found
    links = [child for token in read(draft(reports.hostile())) for child in token.children or ()]
    assert not [link for link in links if link.type == "link_open" and "example.org" in link.attrs["href"]]


def test_a_bug_report_has_the_tracker_s_own_sections_with_the_backtraces_folded() -> None:
    text = bug(reports.hostile())
    assert tuple(headings(text)) == TRACKER
    assert text.count("<details>") == text.count("</details>") > 0
    assert "throttle_group_co_io_limits_intercept" in text
    assert "QEMU command line" in text


def test_a_bug_report_is_one_screen_with_one_stack_and_the_rest_is_folded() -> None:
    for name in ("throttle-deadlock-10.0.2-debug", "drain-over-nbd-10.0.2-debug", "one-of-64-7.2"):
        bundle = open_bundle(reports.FIXTURES / name / "bundle.tar.zst")
        facts = gather_facts(bundle)
        text = bug_report(bundle.manifest, facts, diagnose(facts))
        outside = re.sub(r"<details>.*?</details>\n*", "", text, flags=re.DOTALL)
        assert len(outside.splitlines()) <= 70, name
        assert outside.count("```") == 2, name
        assert "#0 " in outside, name
        assert "ruled out" in outside, name
        assert "not that" not in text, name


def test_one_object_has_one_name_in_a_bug_report_and_a_sentence_keeps_its_full_stop() -> None:
    bundle = open_bundle(reports.FIXTURES / "throttle-deadlock-10.0.2-debug" / "bundle.tar.zst")
    facts = gather_facts(bundle)
    text = bug_report(bundle.manifest, facts, diagnose(facts))
    assert "The mutex lies inside throttle group /machine/peripheral/vd0/virtio-backend." in text
    assert '"id":"vd0"' in text


def test_a_bug_report_does_not_tell_whose_machine_it_was() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 3)
    case.monitor()
    case.disks(e.disk("drive-scsi0", "scsi0", file="/srv/My Bank/payroll.qcow2", group="g", bps=1))
    case.descriptors = {9: "/srv/My Bank/payroll.qcow2"}
    case.command_line = (
        "-name", "guest=devvm",
        "-drive", "file=/srv/My Bank/payroll.qcow2,id=drive-scsi0,serial=SN1234567,password=hunter2",
        "-blockdev", '{"driver":"nbd","server":{"type":"inet","host":"nas.bank.example","port":"10809"}}',
        "-device", "virtio-net-pci,mac=52:54:00:12:34:56",
        "-uuid", "123e4567-e89b-12d3-a456-426614174000",
        "-vnc", "192.0.2.7:1", "-incoming", "tcp:[2001:db8::7]:4444", "-drive", "file=rbd:pool/secret-image",
        "-object", "secret,id=s0,data=c2VjcmV0",
    )  # fmt: skip
    text = bug(case)
    for secret in (
        "Bank", "payroll", "bank.example", "SN1234567", "hunter2", "52:54:00", "123e4567", "192.0.2.7", "2001:db8",
        "c2VjcmV0", "devvm", "pve",
    ):  # fmt: skip
        assert secret not in text, secret
    assert ".qcow2" in text


@given(some.ip_addresses().map(str) | some.uuids().map(str))
def test_no_address_and_no_uuid_outlives_redaction(secret: str) -> None:
    hidden = Redaction({}).text(f"connect to {secret}, then wait")
    assert secret not in hidden or secret in {"::", "::1"} - {secret}


def test_a_time_of_day_is_no_address() -> None:
    assert Redaction({}).text("at 16:47:42 on 0000:00:1f.2") == "at 16:47:42 on 0000:00:1f.2"


@example("__0__")
@given(some.text())
def test_plain_markdown_is_only_ever_text(text: str) -> None:
    shown = markdown.plain(text)
    assert "\n" not in shown
    assert inner_tokens(f"- {shown}") <= {"text", "text_special", "entity"}


@given(some.lists(some.text(), min_size=1))
def test_nothing_ends_a_code_block_but_its_end(lines: list[str]) -> None:
    tokens = read(markdown.block(lines))
    assert [token.type for token in tokens] == ["fence"]


@pytest.mark.parametrize("case", [reports.hostile(), e.Case()], ids=["hostile", "empty"])
def test_json_follows_its_own_schema(case: e.Case) -> None:
    bundle = case.bundle()
    text = document(bundle.manifest, diagnose(gather_facts(bundle)), kill="a\udcff")
    found = msgspec.json.decode(text.encode(), type=Document)
    assert found.kill == "a\\udcff"
    described = msgspec.json.decode(schema().encode())
    assert set(msgspec.json.decode(text.encode())) == set(described["$defs"]["Document"]["properties"])


@pytest.mark.parametrize("form", ["html", "md", "bug", "json", "schema"])
def test_a_stored_bundle_renders_in_every_form(form: str) -> None:
    assert render(reports.STORED[0] / "bundle.tar.zst", form).endswith(("\n", "</html>"))


def test_another_form_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        render(tmp_path, "docx")
    assert "html, md, bug, json" in caught.value.remedy


def test_a_kill_that_is_written_down_beside_the_bundle_is_told(tmp_path: Path) -> None:
    bundle = tmp_path / "case.tar.zst"
    bundle.write_bytes((reports.STORED[0] / "bundle.tar.zst").read_bytes())
    note = tmp_path / "case.tar.zst.kill.json"
    note.write_text('{"when": {"utc": "2026-06-11T16:47:42+00:00"}, "how": "SIGKILL; gone after 12 ms"}')
    assert "SIGKILL; gone after 12 ms" in render(bundle, "html")
    note.write_text("[[[[")
    assert "SIGKILL" not in render(bundle, "json").partition('"diagnosis"')[0]


def test_a_report_is_its_owner_s_alone_and_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    store("new", path)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UnicodeEncodeError):
        store("\ud800", path)
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """As root, a device's name would otherwise become a file's, and the host be without /dev/null."""
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        store("report", pipe)
        assert os.read(reader, 100) == b"report"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    store("report", Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UsageError, match="No space left"):
        store("report", Path("/dev/full"))
    assert Path("/dev/full").is_char_device()
    link.symlink_to(file)
    store("report", link)
    assert link.is_symlink()
    assert file.read_text() == "report"
    with pytest.raises(UsageError, match="cannot be written"):
        store("report", tmp_path / "nowhere" / "report")


def test_a_dash_as_the_reports_file_is_stdout(tmp_path: Path) -> None:
    bundle = str(reports.STORED[0] / "bundle.tar.zst")
    command = [sys.executable, "-m", "autopsy", "report", bundle, "--format", "md", "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("# ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("analyze",), ("analyze", "--json"), ("report",), ("verify",)])
def test_a_result_that_cannot_be_written_is_told_in_two_lines_and_one_that_is_not_wanted_in_none(
    words: tuple[str, ...],
) -> None:
    command = [sys.executable, "-m", "autopsy", *words, str(reports.STORED[0] / "bundle.tar.zst")]
    with open("/dev/full", "wb") as full:
        failed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert failed.returncode == ExitCode.USAGE
    assert failed.stderr == "autopsy: stdout: cannot be written: No space left on device\n         send it elsewhere\n"
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert left.stdout is not None
    left.stdout.close()
    assert left.communicate()[1] == ""
    assert left.returncode == ExitCode.DONE
