"""Asks the index in SQL, in a DuckDB that can read the index's own parts and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.fleet.index.parts import analyzer_of

MEMORY = "2GB"
MOST_ROWS = 1_000_000
VIEW = "diagnoses"
LATEST = "latest"
REMEDY = "the view is `diagnoses`; its columns: autopsy fleet query 'describe diagnoses'"


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """An answer: names of columns, and rows of whatever DuckDB makes of theirs."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def ask(
    files: Sequence[Path],
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    analyzer: str = "",
    once: bool = True,
) -> AnswerTable:
    """Return the answer to one SELECT; the view `latest` is of one analyzer, or that of the newest part.

    A bundle that was diagnosed twice by one analyzer counts once, unless not `once` says that it does not matter.
    Whoever wrote the SQL reads these files and no other, writes none, and loads nothing.

    Raises:
        UsageError: it is no question, or cannot be answered.
    """
    import duckdb  # noqa: PLC0415 - only a question needs it

    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": ""}) as connection:
        paths = [str(file) for file in files]
        connection.execute("SET allowed_paths = $1", [paths])
        connection.execute("SET enable_external_access = false")
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET lock_configuration = true")
        try:
            _views(connection, paths, analyzer or newest_analyzer(files), once=once)
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("query", "it is not one SELECT", remedy=REMEDY)
            answer = connection.execute(statements[0], dict(parameters) if parameters else None)
            rows = answer.fetchmany(MOST_ROWS)
            columns = tuple(column[0] for column in answer.description or ())
        except duckdb.Error as error:
            raise UsageError("query", str(error).strip(), remedy=REMEDY) from error
    return AnswerTable(columns, tuple(rows))


def newest_analyzer(files: Sequence[Path]) -> str:
    """Return the analyzer whose part was written last."""
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, file.name))
    return analyzer_of(newest)


def _views(connection: Any, files: list[str], latest: str, *, once: bool) -> None:  # noqa: ANN401 - DuckDB's connection, loaded late
    """Make the views: each bundle once for each analyzer, and rather with a diagnosis than with an error."""
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    twice = f"SELECT 1 FROM {source} WHERE bundle <> '' GROUP BY bundle, analyzer HAVING count(*) > 1 LIMIT 1"  # noqa: S608 - files of ours
    only = ""
    if once and connection.execute(twice).fetchone() is not None:
        only = (
            " QUALIFY row_number() OVER (PARTITION BY analyzer, coalesce(nullif(bundle, ''), stamp)"
            " ORDER BY error = '' DESC, stamp) = 1"
        )
    connection.execute(f"CREATE VIEW {VIEW} AS SELECT * FROM {source}{only}")  # noqa: S608 - likewise
    connection.execute(f"CREATE VIEW {LATEST} AS SELECT * FROM {VIEW} WHERE analyzer = '{latest}'")  # noqa: S608 - likewise
