"""`autopsy fleet query`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopsy.cli.printing import Json, show

if TYPE_CHECKING:
    from collections.abc import Sequence

# How much memory and how many processors it may use.
DUCKDB_READS = (Path("/proc/self/cgroup"), Path("/proc/self/mountinfo"), Path("/sys/fs/cgroup"), Path("/proc/meminfo"))
From = Annotated[str, typer.Option("--from", metavar="PLACE", help="the index: a folder or a bucket")]


def query(
    question: Annotated[str, typer.Argument(metavar="SQL|QUESTION", help="a SELECT from diagnoses")],
    place: From = ".",
    csv: Annotated[bool, typer.Option("--csv", help="print comma-separated values")] = False,
    json: Json = False,
) -> None:
    """Ask the index in SQL."""
    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.fleet.tables import as_csv, as_json, as_lines
    from autopsy.fleet.index.local import some_parts

    with extra():
        parts = some_parts(place)
        _confine(parts)
        from autopsy.fleet.index.query import ask

        answer = ask(parts, question)
    if json:
        show(as_json(answer))
    elif csv:
        show(as_csv(answer).rstrip("\n"))
    else:
        for line in as_lines(answer):
            show(line)


def _confine(parts: Sequence[Path]) -> None:
    """Leave this process nothing to read but the parts: the SQL may be a stranger's, and the parts, too."""
    from autopsy.linux.confine import sandbox

    sandbox.stay((*dict.fromkeys(part.parent for part in parts), *DUCKDB_READS))
