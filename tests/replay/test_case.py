"""A capture becomes a stored case in one command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from autopsy.bundle.archive import members
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import seal
from support.stored import FIXTURES

TOOL = FIXTURES.parent / "tools" / "case.py"


def store(bundle: Path, into: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(bundle), "--into", str(into), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def sealed(tmp_path: Path) -> Path:
    folder = FIXTURES / "throttle-timer-7.2" / "bundle"
    bundle = tmp_path / "in.tar.zst"
    seal(folder, bundle, open_bundle(folder).manifest)
    return bundle


def test_a_bundle_becomes_a_case_that_replays(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    done = store(bundle, tmp_path / "cases")
    assert done.returncode == 0, done.stderr
    (home,) = (tmp_path / "cases").iterdir()
    assert home.name == "throttle-timer-wait-7.2.22"
    assert {path.name for path in home.iterdir()} == {"bundle.tar.zst", "expected.json", "provenance.md"}
    assert "core" not in {member.name for member in members(home / "bundle.tar.zst")}
    replayed = subprocess.run(
        [sys.executable, "-m", "autopsy", "replay", str(tmp_path / "cases")],
        cwd=FIXTURES.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    again = store(bundle, tmp_path / "cases")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_what_is_no_bundle_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.tar.zst").write_bytes(b"no bundle")
    done = store(tmp_path / "x.tar.zst", tmp_path / "cases")
    assert done.returncode not in {0, 1}
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cases").exists()
