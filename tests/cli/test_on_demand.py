"""A start loads and builds the command that is asked for, and no other."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from autopsy.cli.app import COMMANDS, app
from autopsy.cli.fleet.app import COMMANDS as OF_FLEET

LOADED = """
import atexit, sys
from autopsy.cli.app import COMMANDS, main
sys.argv = ["autopsy", *{words}]
modules = {{place.partition(":")[0] for place in COMMANDS.values()}} | {{"msgspec"}}
atexit.register(lambda: print("LOADED", *sorted(modules & set(sys.modules))))
main()
"""


def loaded(*words: str) -> list[str]:
    """Return which modules of commands a run has loaded, and whether msgspec."""
    program = LOADED.format(words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    mark, *modules = done.stdout.splitlines()[-1].split()
    assert mark == "LOADED"
    return modules


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        (["--version"], []),
        (["capture", "--help"], ["autopsy.cli.capture_command"]),
        (["fleet", "query", "--help"], ["autopsy.cli.fleet.app"]),
    ],
)
def test_a_start_loads_no_other_command(words: list[str], modules: list[str]) -> None:
    assert loaded(*words) == modules


def test_what_a_command_is_for_reads_as_typer_would_say_it() -> None:
    top: Any = typer.main.get_command(app)
    for name in COMMANDS:
        assert top.on_demand.summary(name) == top.commands[name].get_short_help_str(limit=90).rstrip(".") + "."


def test_a_command_is_built_once_and_none_is_missing() -> None:
    top: Any = typer.main.get_command(app)
    assert top.commands.get("captur") is None
    assert top.commands["capture"] is top.commands.get("capture")
    assert [(name, command.name) for name, command in top.commands.items()] == [(name, name) for name in COMMANDS]
    assert [command.name for command in top.commands["fleet"].commands.values()] == list(OF_FLEET)
