"""A temporary folder that is missing or full is a message, and nothing of the system's is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopsy.errors import ExitCode, NotStored
from autopsy.files import scratch_place

STORED = next(iter(sorted(Path(__file__).resolve().parents[2].glob("fixtures/nbd-silent-*/bundle.tar.zst"))))


@pytest.mark.parametrize("words", [("drill", "healthy"), ("examine", str(STORED))])
def test_a_missing_tmpdir_is_told_in_two_lines(words: tuple[str, ...], tmp_path: Path) -> None:
    missing = tmp_path / "nope"
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", *words],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(missing)},
    )
    assert done.returncode == ExitCode.NOT_STORED, done.stderr
    assert "Traceback" not in done.stderr
    assert "set TMPDIR" in done.stderr
    assert not missing.exists()


def test_without_tmpdir_the_first_place_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(scratch_place, "PLACES", (str(tmp_path / "none"), str(tmp_path)))
    assert scratch_place.scratch_place() == str(tmp_path)
    monkeypatch.setattr(scratch_place, "PLACES", (str(tmp_path / "none"),))
    with pytest.raises(NotStored):
        scratch_place.scratch_place()
    assert list(tmp_path.iterdir()) == []
