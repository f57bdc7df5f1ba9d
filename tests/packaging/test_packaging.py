"""The wheel, the sdist and the editable install carry the templates and the runbooks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package")
pytest.importorskip("build", reason="`build` drives hatchling")

HOUSE = Path(__file__).resolve().parents[2]
TOP = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("autopsy", "templates", "runbooks")

# What was just installed comes before whatever environment the tests run in.
ASK = """
import site, sys
before = list(sys.path)
site.addsitedir(sys.argv[1])
sys.path.sort(key=lambda path: path in before)
import autopsy
from autopsy.resources import resource
print(autopsy.__file__)
for folder in ("templates", "runbooks"):
    print(resource(folder), *sorted(path.name for path in resource(folder).iterdir()))
"""


DRILL = "fixtures/throttle-deadlock-10.0.2-debug"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what is packaged, so that a build leaves nothing in the tree."""
    copy = tmp_path_factory.mktemp("packaging") / "autopsy"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(HOUSE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HOUSE / DRILL, copy / DRILL)
    for each in TOP:
        shutil.copy(HOUSE / each, copy)
    return copy


def build(source: Path, kind: str, out: Path) -> Path:
    """Build without a network and without an environment of its own."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    return next(out.iterdir())


def unpack(wheel: Path, place: Path) -> Path:
    """Install a pure wheel the way every installer does: by unpacking it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def from_wheel(checkout: Path, work: Path) -> Path:
    return unpack(build(checkout, "wheel", work / "dist"), work / "site")


def from_sdist(checkout: Path, work: Path) -> Path:
    (work / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", build(checkout, "sdist", work / "sdist"), "-C", work / "unpacked"], check=True)
    return from_wheel(next((work / "unpacked").iterdir()), work)


def editable(checkout: Path, work: Path) -> Path:
    hook = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    (work / "dist").mkdir()
    subprocess.run([sys.executable, "-c", hook, work / "dist"], cwd=checkout, check=True, capture_output=True)
    return unpack(next((work / "dist").iterdir()), work / "site")


@pytest.mark.parametrize("install", [from_wheel, from_sdist, editable])
def test_an_install_finds_its_templates_and_runbooks(
    install: Callable[[Path, Path], Path], checkout: Path, tmp_path: Path
) -> None:
    place = install(checkout, tmp_path)
    told = subprocess.run(
        [sys.executable, "-I", "-c", ASK, place], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    home = checkout if install is editable else place
    assert Path(told[0]) == home / "autopsy" / "__init__.py"
    for line, folder in zip(told[1:], ("templates", "runbooks"), strict=True):
        assert line.split()[1:] == sorted(path.name for path in (HOUSE / folder).iterdir() if path.is_file())


def test_the_wheel_carries_the_package_only(checkout: Path, tmp_path: Path) -> None:
    place = from_wheel(checkout, tmp_path)
    assert (place / "autopsy" / DRILL / "bundle.tar.zst").is_file(), "what `autopsy drill` walks through"
    assert {each.name.partition("-")[0] for each in place.iterdir()} == {"autopsy", "vm_autopsy"}
