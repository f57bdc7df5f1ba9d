"""Questions are answered from the index's parts alone, whoever wrote the SQL."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from autopsy.errors import UsageError
from autopsy.fleet.index.local import some_parts
from autopsy.fleet.index.query import ask
from support import lab
from support.built import fleets

CASES = ("healthy-idle-7.2", "throttle-deadlock-10.0.2", "throttle-deadlock-10.0.2-debug")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("index")
    fleets.index(into, *(lab.HOUSE / "fixtures" / name for name in CASES))
    return into


def test_a_question_is_answered_as_a_table_as_json_and_as_csv(index: Path) -> None:
    sql = (
        "SELECT signature, count(*) AS n, any_value(objects) AS o FROM diagnoses WHERE signature LIKE 'thr%' GROUP BY 1"
    )
    lines = fleets.command("query", sql, "--from", index).stdout.splitlines()
    assert lines[0].split() == ["signature", "n", "o"]
    assert lines[1].split()[:2] == ["throttle-lock-self-deadlock", "2"]
    assert lines[2] == "(1 rows)"
    (row,) = fleets.asked("query", sql, "--from", index)["rows"]
    assert row["n"] == 2
    assert row["o"]["thread"] == 1
    told = list(csv.DictReader(io.StringIO(fleets.command("query", sql, "--from", index, "--csv").stdout)))
    assert told[0]["signature"] == "throttle-lock-self-deadlock"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('s3://bucket/x')",
        "COPY (SELECT 1) TO '{index}/x.parquet'",
        "COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
        "SELECT 1; COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
        "ATTACH '{index}/x.db'",
        "INSTALL httpfs",
        "LOAD '/tmp/x.so'",
        "SET enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "SELECT * FROM duckdb_secrets()",
        "EXPORT DATABASE '{index}/x'",
        "DROP VIEW diagnoses",
        "PREPARE x AS SELECT 1",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
        "this is no SQL",
    ],
)
def test_a_question_reads_and_writes_nothing_else(index: Path, sql: str) -> None:
    parts = some_parts(str(index))
    before = [part.read_bytes() for part in parts]
    with pytest.raises(UsageError):
        ask(parts, sql.format(index=index, part=parts[0]))
    assert [part.read_bytes() for part in parts] == before
    assert {path for path in index.rglob("*") if path.is_file()} == set(parts)


def test_an_index_without_parts_is_told(tmp_path: Path) -> None:
    assert "fleet diagnose" in fleets.command("query", "SELECT 1", "--from", tmp_path, code=2).stderr


def test_a_bundle_that_was_diagnosed_twice_counts_once(tmp_path: Path) -> None:
    into = tmp_path / "index"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tar.zst").write_bytes((lab.HOUSE / "fixtures" / CASES[0] / "bundle.tar.zst").read_bytes())
        fleets.index(into, tmp_path / name)
    assert len(list(into.rglob("*.parquet"))) == 2
    assert fleets.rows(into, "SELECT count(*) AS n FROM diagnoses") == [{"n": 1}]
