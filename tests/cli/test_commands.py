"""The commands that README tells of are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from autopsy.cli.app import app

README = Path(__file__).resolve().parents[2] / "README.md"


def test_readme_tells_of_every_command_and_of_no_other() -> None:
    table = README.read_text().partition("## Commands\n")[2].partition("\n\n| exit code")[0]
    rows = (line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `autopsy "))
    told = {name for row in rows for name in re.findall(r"`autopsy ([a-z]+)", row)}
    there = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer's own click has no public name
    assert told == set(there)
