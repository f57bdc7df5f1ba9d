"""Every bundle is a row, whatever it holds, and every way to share the work gives the same rows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from autopsy.fleet.engine.diagnose import FleetRun, plan
from autopsy.fleet.index.row import COLUMNS, FleetRow
from autopsy.fleet.places.sources import Shard
from fleet import many_cases
from support import lab, stored
from support.built import fleets

FIXTURES = lab.HOUSE / "fixtures"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of every stored case."""
    into = tmp_path_factory.mktemp("whole")
    fleets.index(into, FIXTURES, named=True)
    return into


def test_a_row_says_what_the_diagnosis_of_its_bundle_says(whole: Path) -> None:
    told = {Path(row["source"]).parent.name: row for row in fleets.rows(whole)}
    for case in stored.CASES:
        expected = json.loads((case.bundle.parent / "expected.json").read_text())
        row = told[case.bundle.parent.name]
        assert row["error"] == ""
        assert {key: row[key] for key in ("where", "signature", "confidence")} == {
            key: expected[key] for key in ("where", "signature", "confidence")
        }
        assert case.bundle.is_dir() or row["bundle"] == fleets.sha256(case.bundle)


def test_a_row_has_the_columns_that_the_index_has() -> None:
    assert tuple(name for name, _ in COLUMNS) == FleetRow.__struct_fields__


def test_no_row_tells_a_name(whole: Path) -> None:
    text = json.dumps([{**row, "source": ""} for row in fleets.rows(whole)], default=str)
    assert '"host": "host-' in text
    assert '"host": "host"' not in text
    for name in ("/var/lib/vm", "iothread2", "vd0", "qemu-nbd", "nbd+unix"):
        assert name not in text


def test_two_shards_and_two_processes_give_the_rows_of_one(whole: Path, tmp_path: Path) -> None:
    into = tmp_path / "index"
    for number in (1, 2):
        fleets.index(into, FIXTURES, named=True, shard=Shard(number, 2), jobs=2, chunk=60)
    assert fleets.rows(into) == fleets.rows(whole)
    assert plan(FleetRun(sources=(str(FIXTURES),), into=str(into))).bundles == 0


def test_a_bundle_that_hangs_or_eats_or_lies_is_a_row_and_the_rest_is_diagnosed(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    good = fleets.bundle()
    for name, data in {
        "good": good,
        "eats": fleets.that_eats_memory(),
        "short": good[: len(good) // 2],
        "no-bundle": b"GIF89a",
        "empty": b"",
        "newer": fleets.archive({"manifest.json": fleets.manifest(schema=99)}),
        "leads-out": fleets.archive({"manifest.json": fleets.manifest(), "../../etc/cron.d/x": b"x"}),
        "no-time": fleets.archive(
            {"manifest.json": fleets.manifest(began={"utc": "x", "zone": "", "monotonic_ns": 1})}
        ),
        "\u202egood": fleets.bundle(2),
    }.items():
        (folder / f"{name}.tar.zst").write_bytes(data)
    (folder / "link.tar.zst").symlink_to("/etc/passwd")
    fleets.index(tmp_path / "index", folder, named=True, seconds=60.0, memory=64 << 20, jobs=2)
    (folder / "hangs.tar.zst").write_bytes(fleets.that_hangs())
    fleets.index(tmp_path / "index", folder, named=True, seconds=2.0)
    told = {Path(row["source"]).name.removesuffix(".tar.zst"): row for row in fleets.rows(tmp_path / "index")}
    assert len(told) == 10
    assert {name for name, row in told.items() if not row["error"]} == {"good", "no-time", "\u202egood"}
    assert told["no-time"]["time"] is None
    assert "no answer in 2 s" in told["hangs"]["error"]
    assert "memory" in told["eats"]["error"]
    assert "schema 99" in told["newer"]["error"]
    for row in told.values():
        assert len(row["bundle"]) == 64
        assert row["error"] == "" or row["signature"] == ""


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, into = tmp_path / "bundles", tmp_path / "index"
    many_cases.make(folder, 30, tuple(many_cases.cases())[:6])
    words = ("fleet", "diagnose", str(folder), "--into", str(into), "--chunk", "10")
    first = subprocess.Popen([sys.executable, "-m", "autopsy", *words], stderr=subprocess.PIPE)
    while not list(into.glob("*/*.parquet")):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert first.stderr is not None
    first.stderr.close()
    before = len(fleets.rows(into))
    told = fleets.asked(*words[1:])
    assert 10 <= before < 30
    assert (told["known"], told["bundles"], told["errors"]) == (before, 30 - before, 0)
    assert len({row["bundle"] for row in fleets.rows(into)}) == 30
    assert [path.name for path in into.rglob("*") if path.is_file() and path.suffix != ".parquet"] == []


def test_a_bundle_is_no_row_under_the_name_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    good = fleets.bundle()
    (folder / f"{fleets.sha256(good)}.tar.zst").write_bytes(good)
    (folder / f"{'0' * 64}.tar.zst").write_bytes(good)
    fleets.index(tmp_path / "index", folder)
    assert sorted(row["error"] == "" for row in fleets.rows(tmp_path / "index", "SELECT error FROM diagnoses")) in (
        [True],
        [False, True],
    )


def test_what_is_not_known_of_a_row_does_not_break_it() -> None:
    empty = FleetRow(bundle="", stamp="", size=0, analyzer="")
    assert msgspec.json.decode(msgspec.json.encode(empty), type=FleetRow) == empty
