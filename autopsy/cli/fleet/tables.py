"""An answer of the index as a table, as JSON, as comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from autopsy.cli.fleet.fleet_json import FleetAnswer
from autopsy.fleet.index.query import AnswerTable
from autopsy.text import plain

WIDEST = 60  # characters of one cell on a terminal; --json and --csv have it all
GAP = "  "


def as_json(table: AnswerTable) -> str:
    """Return one object."""
    rows = tuple(dict(zip(table.columns, row, strict=True)) for row in table.rows)
    answer = FleetAnswer(columns=table.columns, rows=rows)
    return msgspec.json.format(msgspec.json.encode(answer, enc_hook=str), indent=1).decode()


def as_csv(table: AnswerTable) -> str:
    """Return lines with a header; what holds several values is JSON in its cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return out.getvalue()


def as_lines(table: AnswerTable) -> Iterator[str]:
    """Yield the table for eyes, at last how many rows it has."""
    rows = [[_short(_cell(value)) for value in row] for row in table.rows]
    widths = [max(map(len, (name, *(row[at] for row in rows)))) for at, name in enumerate(table.columns)]
    for row in (list(table.columns), *rows):
        yield GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield f"({len(rows)} rows)"


def _cell(value: Any) -> str:  # noqa: ANN401 - whatever DuckDB makes of a column
    match value:
        case None | str():
            return value or ""
        case float():
            return f"{value:g}"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case list() | dict() | tuple():
            return msgspec.json.encode(value, enc_hook=str).decode()
        case _:
            return str(value)


def _short(text: str) -> str:
    safe = plain(text)
    return safe if len(safe) <= WIDEST else f"{safe[: WIDEST - 1]}…"
