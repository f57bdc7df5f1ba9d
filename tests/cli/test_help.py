"""Help and manual leave nothing out, and the shell completes what it can know, quickly."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from autopsy.cli import completion
from autopsy.cli.app import app
from autopsy.cli.help_text import EXAMPLES, EXIT_CODES, GROUPS
from autopsy.errors import ExitCode
from support import lab

_PATH = lab.HOUSE / ".ci/manual.py"
_SPEC = importlib.util.spec_from_file_location("manual", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
manual = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(manual)
TOP: Any = typer.main.get_command(app)
COMMANDS = (
    *("analyze", "capture", "diff", "doctor", "drill", "examine", "gdb", "import", "list", "ps"),
    *("redact", "replay", "report", "rm", "seal", "show", "verify"),
)
WITHOUT_JSON = {"gdb", "report"}  # one is interactive; the other has --format json
SYSTEMS = {"XAUTHORITY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "HOME"}  # handed on, not read


def plain(roff: str) -> str:
    """Return a manual page's source as it is read."""
    return re.sub(r"\\f[BIR]", "", roff).replace("\\-", "-").replace("\\e", "\\")


@pytest.fixture(scope="module")
def page() -> str:
    return plain("\n".join(manual.page()))


def test_every_command_is_there() -> None:
    assert set(COMMANDS) <= set(TOP.commands)


def test_every_command_has_a_group_and_an_example_that_it_takes() -> None:
    grouped = [name for _, names in GROUPS for name in names]
    assert len(grouped) == len(set(grouped))
    for name in COMMANDS:
        assert name in grouped
        options = {option for parameter in TOP.commands[name].params for option in parameter.opts}
        for line in EXAMPLES[name]:
            words = line.split("  ")[0].split("|")[-1 if "-o |" in line else 0].split()
            assert words[:2] == ["autopsy", name]
            assert {word for word in words if word.startswith("-") and len(word) > 1} <= options


def test_every_command_but_two_answers_programs() -> None:
    lack = {name for name in COMMANDS if all("--json" not in each.opts for each in TOP.commands[name].params)}
    assert lack == WITHOUT_JSON


def test_help_shows_groups_examples_and_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "autopsy", "--help"], capture_output=True, text=True, check=True)
    for title, _ in GROUPS:
        assert f"\n{title}:\n" in done.stdout
    assert "autopsy capture 102 --then-kill --dry-run" in done.stdout
    assert "\n  130  interrupted" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "capture", "--help"], capture_output=True, text=True, check=True
    )
    kill = done.stdout.partition("\nThe kill:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in kill.splitlines() if line.startswith("  --")] == [
        "--then-kill",
        "--then-start",
        "--dry-run",
        "--even-if-healthy",
        "--even-if-needless",
        "--require",
    ]
    assert "\nExamples:\n  autopsy capture 102 " in done.stdout


def test_every_exit_code_is_told() -> None:
    assert {code for code, _ in EXIT_CODES} == set(ExitCode)


def test_the_manual_tells_every_command_option_default_and_exit_code(page: str) -> None:
    for name, command in TOP.commands.items():
        assert f"autopsy {name} " in page
        section = page.partition(f"\nautopsy {name} ")[2].partition("\n.RE")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden and parameter.name != "help":
                assert ", ".join(parameter.opts) in section
                assert (parameter.help or "") in section
    assert "longest stop of the VM (default: 50)" in page
    assert "see --list (default: throttle)" in page
    for code in ExitCode:
        assert f"\n.TP\n{code.value}\n" in page


def read_from_the_environment() -> set[str]:
    """Return the names that the code asks os.environ for."""
    found = set()
    for path in (lab.HOUSE / "autopsy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Subscript | ast.Compare) else ""
            asked = re.match(r"os\.environ(?:\.get\(|\[)'(\w+)'", text) or re.match(r"'(\w+)' in os\.environ", text)
            if asked:
                found.add(asked[1])
    return found


def test_the_manual_tells_every_variable_that_is_read(page: str) -> None:
    names = read_from_the_environment()
    assert {"TMPDIR", "STATE_DIRECTORY", "NO_COLOR"} <= names
    told = page.partition("\n.SH ENVIRONMENT\n")[2].partition("\n.SH ")[0]
    assert {name for name in names - SYSTEMS if name not in told} == set()


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff here")
def test_groff_has_nothing_to_say_against_the_manual() -> None:
    source = "\n".join(manual.page()) + "\n"
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-Kutf8", "-ww"], input=source, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "EXIT STATUS" in re.sub(".\x08", "", done.stdout)


def completed(*words: str) -> list[str]:
    """Return what the shell is offered for the last of the words."""
    line = " ".join(("autopsy", *words))
    environment = {
        **os.environ,
        "_AUTOPSY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    program = "import sys; sys.argv = ['autopsy']\nfrom autopsy.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    return done.stdout.split()


def test_the_shell_completes_steps_scenarios_formats_and_ages() -> None:
    assert completed("report", "x", "--format", "") == ["html", "md", "bug", "json", "schema"]
    assert completed("capture", "x", "--require", "qmp.q") == ["qmp.query-status", "qmp.query-block"]
    assert "nbd-silent" in completed("drill", "")
    assert completed("rm", "--older", "3") == ["30d"]


def test_the_shell_completes_what_is_stored_and_bundles_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "autopsy"))
    (tmp_path / "autopsy").mkdir(mode=0o700)
    (tmp_path / "autopsy/autopsy-web1-20260102T030405Z.tar.zst").write_bytes(b"x")
    (tmp_path / "here.tar.zst").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert completed("show", "") == ["last", "autopsy-web1-20260102T030405Z", "autopsy/", "here.tar.zst"]
    assert completed("verify", "h") == ["here.tar.zst"]
    assert completed("verify", "autopsy/autopsy-w") == ["autopsy/autopsy-web1-20260102T030405Z.tar.zst"]


def test_completion_loads_nothing_that_is_slow() -> None:
    program = (
        "import sys\nfrom autopsy.cli import completion\ncompletion.formats('')\ncompletion.steps('')\n"
        "completion.captures('')\nprint(sorted({'jinja2', 'rich', 'drgn', 'autopsy.diagnose'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_that_cannot_be_read_completes_to_nothing() -> None:
    assert completion.bundles("/nowhere/at/all") == []


@pytest.mark.live
def test_the_shell_completes_names_of_vms_and_a_process_where_a_name_is_no_word(stock: lab.Build) -> None:
    with lab.qemu(stock, name="web-completed") as named, lab.qemu(stock, name="a; rm -rf /") as hostile:
        offered = completion.vms("")
        assert ("web-completed", f"process {named.pid}") in offered
        assert (str(hostile.pid), f"process {hostile.pid}") in offered
        assert completed("capture", "web-com") == ["web-completed"]
