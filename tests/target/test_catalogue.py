"""A platform is one file and one line of the catalogue: nobody else knows one by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import autopsy
from autopsy.bundle.manifest import Manager
from autopsy.target.platforms import catalogue
from autopsy.target.platforms.catalogue import PLATFORMS, explicit, platform_of
from autopsy.target.platforms.libvirt import LIBVIRT
from autopsy.target.platforms.plain import PLAIN
from autopsy.target.platforms.platform import VmClaim
from autopsy.target.platforms.proxmox import PROXMOX

PACKAGE = Path(autopsy.__file__).parent
PLATFORM_FILES = PACKAGE / "target" / "platforms"
# What reads a bundle knows the names that are stored there.
MAY_KNOW = (PLATFORM_FILES, PACKAGE / "facts", PACKAGE / "diagnose", PACKAGE / "bundle" / "manifest.py")
# Of these files everybody may take: they are no platform's.
SHARED = {"catalogue", "platform", "plain", "owned"}
NAMES = {word for platform in PLATFORMS for word in (platform.manager, platform.form) if word}
OBJECTS = {"PROXMOX", "LIBVIRT", "CONTAINERS", "PLAIN"}


def others() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if not any(path.is_relative_to(known) for known in MAY_KNOW)]


def chosen_by_name(tree: ast.AST) -> Iterator[str]:
    """Yield each place that compares with a platform, matches one, or looks one up in a table."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=comparators):
                subject, decisive = ast.unparse(node), [left, *comparators]
            case ast.Match(subject=matched, cases=cases):
                subject, decisive = ast.unparse(matched), [case.pattern for case in cases]
            case ast.Dict(keys=keys):
                subject, decisive = "", [key for key in keys if key is not None]
            case _:
                continue
        # "process" is an ordinary word, too.
        names = NAMES if "manager" in subject else NAMES - {PLAIN.manager}
        for part in (part for each in decisive for part in ast.walk(each)):
            match part:
                case ast.Constant(value=str(word)) if word in names:
                    yield f"{part.lineno}: {word}"
                case ast.Name(id=word) if word in OBJECTS:
                    yield f"{part.lineno}: {word}"


def taken_from_one(tree: ast.AST) -> Iterator[str]:
    """Yield each import of one platform's own file."""
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module == "autopsy.target.platforms":
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(node.module or "").removeprefix("autopsy.target.platforms.")]
        elif isinstance(node, ast.Import):
            modules = [alias.name.removeprefix("autopsy.target.platforms.") for alias in node.names]
        own = {path.stem for path in PLATFORM_FILES.glob("*.py")} - SHARED - {"__init__"}
        yield from (module for module in modules if module in own)


def test_nobody_but_a_platforms_own_file_compares_with_its_name() -> None:
    found = {str(path): told for path in others() if (told := list(chosen_by_name(ast.parse(path.read_text()))))}
    assert found == {}


def test_nobody_but_the_catalogue_takes_anything_from_one_platforms_file() -> None:
    found = {str(path): told for path in others() if (told := list(taken_from_one(ast.parse(path.read_text()))))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        'record.manager == "proxmox"',
        '"libvirt" != manager',
        'manager in ("libvirt", "process")',
        'record.manager == "process"',
        "platform is PROXMOX",
        'match manager:\n    case "proxmox" | "x":\n        pass',
        'match record.manager:\n    case "process":\n        pass',
        '{"pve": claims}[form]',
    ],
)
def test_a_choice_by_a_platforms_name_is_seen_however_it_is_written(code: str) -> None:
    assert list(chosen_by_name(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ['print("proxmox")', 'manager == "vm"', 'source == "process"', "claims = LIBVIRT.claims", 'f(manager="process")'],
)
def test_a_platforms_name_that_decides_nothing_is_let_be(code: str) -> None:
    assert not list(chosen_by_name(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from autopsy.target.platforms import libvirt",
        "from autopsy.target.platforms.proxmox import clock",
        "import autopsy.target.platforms.containers",
    ],
)
def test_an_import_of_one_platforms_file_is_seen_however_it_is_written(code: str) -> None:
    assert list(taken_from_one(ast.parse(code)))


def test_every_platforms_file_is_in_the_catalogue() -> None:
    own = {path.stem for path in PLATFORM_FILES.glob("*.py")} - SHARED - {"__init__"}
    assert {*own, "plain"} == {name.lower() for name in OBJECTS}
    assert {getattr(catalogue, name) for name in OBJECTS} == set(PLATFORMS)


def test_every_name_that_a_bundle_may_store_has_its_platform() -> None:
    assert {platform.manager for platform in PLATFORMS} == set(get_args(Manager))


def test_a_vm_belongs_to_the_first_platform_of_its_managers_name() -> None:
    assert platform_of("proxmox") is PROXMOX
    assert platform_of("libvirt") is LIBVIRT
    assert platform_of("a manager of later") is PLAIN


def test_the_word_that_means_a_vm_alone_begins_with_its_platforms_form() -> None:
    assert explicit(VmClaim("proxmox", "102", 1, Path("/run/qemu-server/102.pid"))) == "pve:102"
    assert explicit(VmClaim("libvirt", "web1", 1, Path("/run/libvirt/qemu/web1.pid"))) == "libvirt:web1"
