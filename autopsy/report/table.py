"""A table of the report: what its columns are, and what cites each row."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact, Known, T

ABSENT = "—"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Column:
    """One column; numbers are aligned by their last digit."""

    title: str
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row, whose first cell is its heading."""

    cells: tuple[str, ...]
    cites: tuple[Cite, ...] = ()
    stuck: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table. `note` says what a reader must know; without rows, why there are none. `more` were left out."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    more: int = 0


def table(id_: str, title: str, columns: str, rows: list[Row], note: str = "", *, most: int = 200) -> Table:
    """Return a table; `columns` are divided by `|`, numeric ones end in `#`."""
    heads = tuple(Column(head.strip().removesuffix("#"), head.strip().endswith("#")) for head in columns.split("|"))
    return Table(id=id_, title=title, columns=heads, rows=tuple(rows[:most]), note=note, more=max(0, len(rows) - most))


def shown(fact: Fact[T]) -> str:
    """Return a known value in words, or that it is unknown."""
    return str(fact.value) if isinstance(fact, Known) else UNKNOWN


def why(fact: Fact[T]) -> str:
    """Return why a fact is unknown, empty where it is known."""
    return "" if isinstance(fact, Known) else f"Cannot be told: {fact.evidence}: {fact.why}."


def change(first: int | None, second: int | None) -> str:
    """Return how far a count came: `+12`, `0`, and a dash where one of both is missing."""
    if first is None or second is None:
        return ABSENT
    return f"{second - first:+,}" if second != first else "0"
