from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from jinja2 import DictLoader, Environment

from autopsy.compiled_templates import CompiledTemplates


def rendered(folder: Path, source: str, made_by: Path) -> str:
    cache = CompiledTemplates(folder, (str(made_by),))
    return (
        Environment(loader=DictLoader({"t": source}), autoescape=True, bytecode_cache=cache).get_template("t").render()
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "made_by").touch()
    return tmp_path


def kept(place: Path) -> list[Path]:
    return sorted(place.glob("__pycache__/*"))


def test_a_template_is_compiled_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendered(place, "a {{ 1 }}", place / "made_by") == "a 1"
    (file,) = kept(place)
    assert file.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(Environment, "_compile", lambda *_: pytest.fail("it was compiled again"))
    assert rendered(place, "a {{ 1 }}", place / "made_by") == "a 1"


def test_what_was_compiled_of_something_else_is_not_used(place: Path) -> None:
    assert rendered(place, "a", place / "made_by") == "a"
    assert rendered(place, "b", place / "made_by") == "b"
    (file,) = kept(place)
    before = file.read_bytes()
    os.utime(place / "made_by", (1, 1))
    assert rendered(place, "b", place / "made_by") == "b"
    assert file.read_bytes() != before


@pytest.mark.parametrize("damage", [b"", b"no bytecode", b"\0" * 4096])
def test_a_damaged_one_is_compiled_again(place: Path, damage: bytes) -> None:
    rendered(place, "a", place / "made_by")
    (file,) = kept(place)
    for cut in (damage, file.read_bytes()[: file.stat().st_size // 2]):
        file.write_bytes(cut)
        assert rendered(place, "a", place / "made_by") == "a"


def test_nothing_is_kept_where_python_keeps_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered(place, "a", place / "made_by") == "a"
    assert not kept(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (place / "__pycache__").touch()  # nobody can write below it
    assert rendered(place, "a", place / "made_by") == "a"
