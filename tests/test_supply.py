"""What is shipped, and what it stands on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sbom
from test_packaging import checkout  # noqa: F401 - a fixture

EPOCH = "1700000000"


def test_two_builds_of_one_tree_are_one_wheel(checkout: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    digests = []
    for number in range(2):
        out = tmp_path / str(number)
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, checkout],
            check=True,
            capture_output=True,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TZ": f"UTC{number:+d}"},
        )
        (wheel,) = out.iterdir()
        digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
        for each in checkout.rglob("*.py"):
            os.utime(each, (number, number))
    assert digests[0] == digests[1]


def test_the_bill_of_materials_names_what_is_needed_and_nothing_else() -> None:
    found = sbom.needed("typer")
    if "autopsy" in {each.name for each in metadata.distributions()}:
        found = sbom.needed("autopsy")
        assert {"msgspec", "zstandard", "jinja2", "qemu-qmp", "pygdbmi"} <= set(found)
    assert "pytest" not in found
    made = sbom.component("typer", found["typer"], "library")
    assert made["purl"] == f"pkg:pypi/typer@{metadata.version('typer')}"


def test_every_dependency_has_a_floor_and_a_reason() -> None:
    lines = (Path(__file__).parent.parent / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    wanted = lines[start + 1 : lines.index("]", start)]
    assert wanted
    for line in wanted:
        assert ">=" in line
        assert "#" in line, f"no reason: {line}"


@pytest.mark.parametrize("name", ["msgspec", "zstandard"])
def test_a_component_tells_its_licence(name: str) -> None:
    assert sbom.licences(metadata.distribution(name))
