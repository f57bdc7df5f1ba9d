"""What is asked of every index: what is frequent, alike, gone, unknown, and judged otherwise than before."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from autopsy.errors import ExitCode, UsageError
from autopsy.fleet.engine.chunk import diagnose_one
from autopsy.fleet.index import parts
from autopsy.fleet.index.changes import differences
from autopsy.fleet.index.local import some_parts
from autopsy.fleet.index.query import ask
from autopsy.fleet.index.questions import NAMES, question
from autopsy.fleet.index.row import FleetRow
from autopsy.fleet.index.seen import seen_words
from autopsy.fleet.index.similar import question_of
from autopsy.fleet.places.opening import open_place
from support import lab
from support.built import fleets

STUCK = "throttle-lock-self-deadlock"


def put(place: Path, rows: list[FleetRow]) -> None:
    folder = place / "made"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    assert open_place(str(place)).put_new(parts.name_of(rows[0].analyzer, rows), parts.write(rows, folder))


def row(number: int, analyzer: str = "1", **more: object) -> FleetRow:
    known = {"where": "throttle", "signature": STUCK, "confidence": "proven", "cluster": f"{STUCK}: ring", **more}
    digest = f"{number:064x}"
    when = datetime.fromtimestamp(1_700_000_000 + 3600 * number, UTC).strftime("%F %T")
    size = 1000 - number
    return FleetRow(bundle=digest, stamp=digest[:32], size=size, analyzer=analyzer, time=when, **known)  # type: ignore[arg-type]  # a test's own rows


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of captures before and after an upgrade from 9.2 to 10.0.2."""
    place = tmp_path_factory.mktemp("index")
    old = [
        row(number, host=f"host-{number % 3}", qemu_version="9.2.0 (Debian)", stacks_named=("a", "b"))
        for number in range(5)
    ]
    new = [
        row(
            number, host=f"host-{number % 2}", qemu_version="10.0.2", signature="nbd-silent", cluster="nbd-silent: peer"
        )
        for number in range(10, 17)
    ]
    both = [
        row(20, signature="x", cluster="x", qemu_version="9.2.0"),
        row(21, signature="x", cluster="x", qemu_version="10.1"),
    ]
    unknown = [row(30, signature="unknown", where="unknown", cluster="unknown: kernel", qemu_version="10.0.2")]
    healthy = [row(31, signature="healthy", where="none", cluster="healthy")]
    broken = [FleetRow(bundle="f" * 64, stamp="f" * 32, size=1, analyzer="1", error="not a whole bundle")]
    put(place, old + new + both + unknown + healthy + broken)
    return place


def answer(index: Path, *words: str) -> list[dict[str, object]]:
    asked = question(words)
    table = ask(some_parts(str(index)), asked.sql, asked.parameters)
    return [dict(zip(table.columns, each, strict=True)) for each in table.rows]


def test_the_most_frequent_comes_first_and_the_healthy_do_not_count(index: Path) -> None:
    found = answer(index, "top")
    assert [(each["signature"], each["captures"]) for each in found] == [
        ("nbd-silent", 7),
        (STUCK, 5),
        ("x", 2),
        ("unknown", 1),
    ]
    assert (found[1]["hosts"], found[1]["proven_percent"]) == (3, 100)
    assert str(found[1]["first"]) == "2023-11-14 22:13:20"


def test_what_an_upgrade_has_changed_is_told_with_how_many_have_it(index: Path) -> None:
    told = {each["signature"]: each for each in answer(index, "since-upgrade", "10.0")}
    assert {name: each["it_is"] for name, each in told.items()} == {
        STUCK: "not seen since",
        "nbd-silent": "new since",
        "unknown": "new since",
        "x": "still seen",
    }
    assert (told[STUCK]["before"], told[STUCK]["since"], told[STUCK]["hosts_upgraded"]) == (5, 0, 3)
    newest = {each["signature"]: each["it_is"] for each in answer(index, "since-upgrade")}
    assert newest["nbd-silent"] == "not seen since"
    assert {each["version"] for each in answer(index, "since-upgrade")} == {"10.1"}


def test_what_no_signature_names_and_what_cannot_be_read_have_their_questions(index: Path) -> None:
    assert [each["cluster"] for each in answer(index, "unknown")] == ["unknown: kernel"]
    assert [(each["error"], each["bundles"]) for each in answer(index, "errors")] == [("not a whole bundle", 1)]


def test_what_is_alike_is_found_by_digest_and_by_file(index: Path, tmp_path: Path) -> None:
    files = some_parts(str(index))
    asked = question_of(files, f"{3:064x}")
    found = ask(files, asked.sql, asked.parameters)
    assert {each[0] for each in found.rows} == {f"{number:064x}" for number in (0, 1, 2, 4)}
    for digest in ("0000000000", "abcdef012345", "'; --"):
        with pytest.raises(UsageError):
            question_of(files, digest)
    fixtures = lab.HOUSE / "fixtures"
    fleets.index(tmp_path, *(fixtures / f"{name}-10.0.2-debug" for name in ("throttle-deadlock", "nbd-silent")))
    bundle = fixtures / "throttle-deadlock-10.0.2/bundle.tar.zst"
    told = fleets.asked("query", "similar", bundle, "--from", tmp_path)["rows"]
    assert [(each["signature"], each["same_mechanism"]) for each in told][:1] == [(STUCK, True)]


def test_a_question_that_is_none_is_told() -> None:
    for words in (("top", "x"), ("similar",), ("since-upgrade", "1", "2"), ("SELECT", "1")):
        with pytest.raises(UsageError):
            question(words)
    assert {"top", "similar", "since-upgrade", "unknown"} <= set(NAMES)


def test_two_analyzers_differ_in_groups_with_the_smallest_example_first(tmp_path: Path) -> None:
    put(tmp_path, [row(number, "1") for number in range(8)])
    put(
        tmp_path,
        [
            *(row(number, "2") for number in range(3)),
            *(row(number, "2", signature="unknown", where="unknown", confidence="possible") for number in range(3, 7)),
            FleetRow(bundle=f"{7:064x}", stamp="7", size=1, analyzer="2", error="no answer in 30 s"),
            row(9, "2"),
        ],
    )
    found = differences(some_parts(str(tmp_path)), "1", "2")
    assert (found.same, found.changed, found.only_old, found.only_new) == (3, 5, 0, 1)
    first, second = found.groups
    assert (first.old.signature, first.new.signature, first.bundles) == (STUCK, "unknown", 4)
    assert first.examples == tuple(f"{number:064x}" for number in (6, 5, 4))  # the later, the smaller
    assert second.new.words == "error: no answer in 30 s"
    done = fleets.command("diff", "1", "2", "--from", tmp_path, "--exit-code", code=ExitCode.MISMATCH)
    assert f"4  throttle {STUCK} (proven) → unknown unknown (possible)" in done.stdout
    with pytest.raises(UsageError, match="judged nothing"):
        differences(some_parts(str(tmp_path)), "1", "3")


def test_the_answer_of_a_program_is_one_object(index: Path) -> None:
    told = json.loads(fleets.command("query", "top", "--from", index, "--json").stdout)
    assert told["columns"][0] == "signature"
    assert len(told["rows"]) == 4


def test_a_report_says_how_often_an_index_has_met_the_like(tmp_path: Path) -> None:
    fixtures = lab.HOUSE / "fixtures"
    bundle = fixtures / "throttle-deadlock-10.0.2/bundle.tar.zst"
    fleets.index(tmp_path, *(fixtures / f"{name}-10.0.2-debug" for name in ("throttle-deadlock", "nbd-silent")), bundle)
    row = diagnose_one(bundle)
    words = "once on 1 host, first 2026-11-21, last 2026-11-21 (throttle-lock-self-deadlock: ring of"
    assert seen_words(str(tmp_path), row).startswith(words)
    assert seen_words(str(tmp_path), msgspec.structs.replace(row, cluster="x")) == "never (x)"
    assert seen_words(str(tmp_path / "none"), row) == "the index is empty"
    report = ("report", str(bundle), "--seen", str(tmp_path), "--format")
    for format_, before in (("html", "<b>Seen before:</b> "), ("md", "- Seen before: ")):
        done = subprocess.run(
            [sys.executable, "-m", "autopsy", *report, format_], capture_output=True, text=True, check=True
        )
        assert f"{before}{words}" in done.stdout
