"""Nobody who follows our words installs another project's code."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
TOLD = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml")
FOLDERS = ("docs", "runbooks", "templates", "packaging", "autopsy", ".ci", "tools")

# An installer, what it does, and further words of the same command, as far as ours by its bare name: no path on
# either side. That holds for the name that we shall have, too: until it is published it is anybody's.
INSTALLERS = r"(?:pipx?3?|uvx?|apt|apt-get|aptitude|dnf|yum|zypper|conda)\b"
BARE = re.compile(
    INSTALLERS + r"(?:\s+-\S+)*\s+(?:tool\s+)?(?:install|wheel|download|run|get|in)\b"
    r"[^\n`&|;#]*?(?<![\w./\\-])(?:vm[-_])?autopsy(?:\[\w+\])?(?![\w./\\*-])"
)


def bare(text: str) -> list[str]:
    """Return every command of a text that installs us by a name."""
    return [found.group() for found in BARE.finditer(text.replace("'", "").replace('"', ""))]


@pytest.mark.parametrize(
    "command",
    [
        "pip install autopsy",
        "pipx install autopsy",
        "pip wheel -w wheels 'autopsy[heap]'",
        "/opt/x/bin/pip install --no-index --find-links wheels autopsy",
        "apt install autopsy",
        "apt-get -y install gdb autopsy",
        "pip install vm-autopsy",
        "dnf install vm-autopsy",
        "python -m pip install --quiet vm_autopsy",
    ],
)
def test_a_bare_name_is_seen(command: str) -> None:
    assert bare(command)


@pytest.mark.parametrize(
    "command",
    [
        "apt install ./vm-autopsy_*.deb",
        "pip install ./vm_autopsy-*.whl",
        "pipx install /path/to/checkout",
        "/opt/autopsy/bin/pip install --no-index --find-links wheels wheels/vm_autopsy-*.whl drgn",
        "apt install gdb",
    ],
)
def test_a_file_or_a_checkout_is_no_bare_name(command: str) -> None:
    assert not bare(command)


def test_nothing_that_we_say_installs_a_stranger() -> None:
    listed = subprocess.run(
        ["git", "ls-files", *TOLD, *FOLDERS], cwd=HOUSE, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no checkout")
    files = [HOUSE / name for name in listed.stdout.split()]
    assert len(files) > 300
    told = {file.name: bare(file.read_text("utf-8", "replace")) for file in files if file.is_file()}
    assert not {name: commands for name, commands in told.items() if commands}


def test_the_distribution_is_vm_autopsy_and_both_commands_are_one() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    assert project["name"] == "vm-autopsy"
    assert set(project["scripts"]) == {"autopsy", "vm-autopsy"}
    assert len(set(project["scripts"].values())) == 1
