"""Runbooks, advice and known bugs keep up with the signatures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autopsy.diagnose import known_bugs, runbooks
from autopsy.diagnose.catalogue import SIGNATURES
from autopsy.diagnose.frames.catalogue import FROM_FRAMES

RUNBOOKS = Path(__file__).resolve().parents[2] / "runbooks"
IDS = tuple(signature.id for signature in (*SIGNATURES, *FROM_FRAMES))
UNKNOWN = ("unknown", "unknown-of-import")
SECTIONS = (
    "Confirm by hand",
    "Immediate relief that destroys no evidence",
    "Recovery",
    "Prevention",
    "Sources",
)


def bullets(text: str, section: str) -> list[str]:
    body = text.partition(f"## {section}\n\n")[2].partition("\n\n## ")[0]
    return [line.removeprefix("- ") for line in body.strip().splitlines()]


def test_no_two_signatures_share_an_id() -> None:
    assert len(set(IDS)) == len(IDS)
    assert [name for name in IDS if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_every_signature_has_its_runbook_and_every_runbook_its_signature() -> None:
    written = {path.stem for path in RUNBOOKS.glob("*.md")}
    assert written == {*IDS, *UNKNOWN, "capture-before-kill"}


@pytest.mark.parametrize("name", [*IDS, *UNKNOWN])
def test_a_runbook_says_what_it_is_in_three_lines_and_has_all_its_parts(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    title, identity, what, *_ = text.split("\n\n")
    assert title.startswith("# ")
    assert identity == f"`{name}`"
    assert len(what.splitlines()) == 3
    assert [section for section in SECTIONS if not bullets(text, section)] == []
    assert text.count("`") % 2 == 0


@pytest.mark.parametrize("name", [*IDS, *UNKNOWN])
def test_the_next_steps_are_the_runbook_s_own_first_lines(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    sections = ("Confirm by hand", "Immediate relief that destroys no evidence", "Recovery")
    advice = runbooks.advice(name)
    assert advice.steps == tuple(bullets(text, section)[0] for section in sections)
    lost = "What a kill makes unknowable"
    assert list(advice.lost) == (bullets(text, lost) if f"## {lost}" in text else [])


@pytest.mark.parametrize("name", ["", "../README", "no-such-signature", "x" * 200])
def test_a_name_without_a_runbook_has_the_advice_of_the_unknown(name: str) -> None:
    assert runbooks.text(name) == ""
    assert runbooks.advice(name) == runbooks.advice("unknown")


def test_known_bugs_name_signatures_that_exist() -> None:
    assert {name for bug in known_bugs.BUGS for name in bug.signatures} <= set(IDS)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", "affected"),
        ("10.0.8", "affected"),
        ("10.0.9", "fixed"),
        ("10.2.1", "affected"),
        ("10.2.2", "fixed"),
        ("11.0.0", "fixed"),
        ("8.2.2", "not affected"),
        ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "not affected"),
        ("", "cannot tell"),
    ],
)
def test_the_throttle_deadlock_s_fix_is_told_by_version(version: str, expected: str) -> None:
    assert known_bugs.has(known_bugs.BUGS[0], version) == expected
