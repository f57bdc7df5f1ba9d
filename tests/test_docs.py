"""What the documents for newcomers name is there: files, folders, links; and every package is in the plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
DOCUMENTS = ("CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md")
# A path in backticks, as far as it can be told from a command or a name of code.
PATH = re.compile(r"(?<=`)(?:[a-z_.][\w.-]*/)+[\w.-]*(?=`)|(?<=`)[\w-]+\.(?:py|md|toml)(?=`)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]+)?\)")
ELSEWHERE = re.compile(r"\b(?:QEMU|kernel|glibc) `[^|\n]*")  # what follows is of the sources of others
MADE_FIRST = {
    "autopsy/target/platforms/NAME.py",
    "fixtures/what-it-shows/",
    "provenance.md",
    ".ci/qemu-11.tried",
}  # by the reader


def paths(document: str) -> set[str]:
    """Return the paths of ours that a document names."""
    text = ELSEWHERE.sub("", (HOUSE / document).read_text(encoding="utf-8"))
    return set(PATH.findall(text)) - MADE_FIRST


def stands(path: str) -> bool:
    """Return whether a path is there: from the top, in the package, or a name alone of a file in the package."""
    if (HOUSE / path).exists() or (HOUSE / "autopsy" / path).exists():
        return True
    return any((HOUSE / "autopsy").rglob(path.rstrip("/")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_is_there(document: str) -> None:
    assert len(paths(document)) > 10
    assert sorted(path for path in paths(document) if not stands(path)) == []


@pytest.mark.parametrize("document", [*DOCUMENTS, "README.md", "docs/fleet.md", "docs/watch.md", "docs/limits.md"])
def test_every_link_leads_somewhere(document: str) -> None:
    place = HOUSE / document
    links = LINK.findall(place.read_text(encoding="utf-8"))
    assert [link for link in links if not (place.parent / link).exists()] == []


def test_the_plan_of_the_house_has_every_package_in_its_drawing_and_in_its_list() -> None:
    _, drawing, rest = (HOUSE / "docs/architecture.md").read_text(encoding="utf-8").split("```\n", 2)
    packages = {path.parent.name for path in (HOUSE / "autopsy").glob("*/__init__.py")}
    assert len(packages) > 20
    assert {package for package in packages if f"{package}/" not in drawing} == {
        "files"
    }  # which writes for all of them
    assert {package for package in packages if f"`{package}/" not in rest} == set()


def test_a_wall_between_packages_names_packages_that_there_are() -> None:
    named = set(re.findall(r'"(autopsy[.\w]*)"', (HOUSE / "pyproject.toml").read_text(encoding="utf-8")))
    modules = {name for name in named if not (HOUSE / name.replace(".", "/")).exists()}
    assert {name for name in modules if not (HOUSE / f"{name.replace('.', '/')}.py").exists()} == set()
