"""Stacks that people pasted in public: most are told, none wrongly, and each with what to take next time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.built.imported import diagnosis_of

WILD = Path(__file__).resolve().parents[2].parent / "shared" / "wild"
PASTES = sorted(WILD.glob("*.bt.txt")) if WILD.is_dir() else []
AT_LEAST = 0.6


def test_most_public_pastes_are_told_and_none_wrongly(tmp_path: Path) -> None:
    if not PASTES:
        pytest.skip(f"no public pastes lie beside this checkout ({WILD.parent.name}/{WILD.name})")
    wrong, right = [], 0
    for paste in PASTES:
        truth = json.loads(paste.with_name(paste.name.replace(".bt.txt", ".json")).read_text())["truth"]["where"]
        found = diagnosis_of(paste.read_text(), tmp_path / paste.stem)
        assert any("Next time" in step for step in found.next_steps)
        assert found.confidence in {"consistent", "possible"}
        if found.where in truth:
            right += 1
        elif found.where != "unknown":
            wrong.append((paste.name, found.where, truth, found.headline))
        else:
            assert found.headline != "The evidence is not enough to tell"  # the place is named
    assert wrong == []
    assert right >= AT_LEAST * len(PASTES)
