"""`autopsy fleet query` and `autopsy fleet diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopsy.cli import completion
from autopsy.cli.printing import Json, show
from autopsy.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autopsy.fleet.index.questions import Question

# How much memory and how many processors it may use.
DUCKDB_READS = (Path("/proc/self/cgroup"), Path("/proc/self/mountinfo"), Path("/sys/fs/cgroup"), Path("/proc/meminfo"))
From = Annotated[str, typer.Option("--from", metavar="PLACE", help="the index: a folder or a bucket")]
Analyzer = Annotated[
    str, typer.Option("--analyzer", metavar="VERSION", help="whose rows `latest` has, instead of the newest's")
]


def query(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SQL|QUESTION",
            help="a SELECT from diagnoses or latest; or top, unknown, errors, since-upgrade [VERSION], similar BUNDLE",
            autocompletion=completion.questions,
        ),
    ],
    place: From = ".",
    analyzer: Analyzer = "",
    csv: Annotated[bool, typer.Option("--csv", help="print comma-separated values")] = False,
    json: Json = False,
) -> None:
    """Ask an index, in SQL or by name."""
    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.fleet.tables import as_csv, as_json, as_lines
    from autopsy.fleet.index.local import some_parts

    with extra():
        parts = some_parts(place)
        asked = _question(tuple(words))
        confine(parts)
        from autopsy.fleet.index.query import ask

        if isinstance(asked, str):
            from autopsy.fleet.index.similar import question_of

            asked = question_of(parts, asked, analyzer)
        answer = ask(parts, asked.sql, asked.parameters, analyzer=analyzer)
    if json:
        show(as_json(answer))
    elif csv:
        show(as_csv(answer).rstrip("\n"))
    else:
        for line in as_lines(answer):
            show(line)


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="the version of an analyzer, as the index has it")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="that of another one")],
    place: From = ".",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="leave with 7 where anything differs")] = False,
    json: Json = False,
) -> None:
    """Say of which stored bundles one analyzer says otherwise than another."""
    from autopsy.cli.fleet.extra import extra
    from autopsy.cli.json_output import as_text
    from autopsy.fleet.index.local import some_parts
    from autopsy.text import plain

    with extra():
        parts = some_parts(place)
        confine(parts)
        from autopsy.fleet.index.changes import differences

        between = differences(parts, old, new)
    if json:
        show(as_text(between))
    else:
        for group in between.groups:
            show(plain(f"{group.bundles:>6}  {group.old.words} → {group.new.words}"))
            show(plain(f"        {' '.join(group.examples)}"))
        show(
            f"{between.same} the same, {between.changed} otherwise, "
            f"{between.only_old} only before, {between.only_new} only now"
        )
    if exit_code and between.changed:
        raise typer.Exit(ExitCode.MISMATCH)


def confine(parts: Sequence[Path]) -> None:
    """Leave this process nothing to read but the parts: the SQL may be a stranger's, and the parts, too."""
    from autopsy.linux.confine import sandbox

    sandbox.stay((*dict.fromkeys(part.parent for part in parts), *DUCKDB_READS))


def _question(words: tuple[str, ...]) -> Question | str:
    """Return what is asked; the beginning of a digest, where a bundle of the index is to be compared with the rest.

    A bundle that is a file is diagnosed now, while this process still can.
    """
    from autopsy.fleet.engine.chunk import diagnose_one
    from autopsy.fleet.index.questions import question, similar_to

    if words[0] != "similar" or len(words) != 2:
        return question(words)
    return similar_to(diagnose_one(Path(words[1]))) if Path(words[1]).exists() else words[1]
