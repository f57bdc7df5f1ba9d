"""The places in memory are a stranger's, and what was asked for cannot be written to: a capture goes elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autopsy.bundle.verify import verify
from support import lab, strangers

pytestmark = [pytest.mark.live, pytest.mark.timeout(200)]

SECRET = b"root's own\n"
THEIRS = tuple(f"-t tmpfs -o mode=0777,uid={strangers.STRANGER} tmpfs {place}" for place in ("/dev/shm", "/run"))  # noqa: S108 - where captures work
NO_STATE = "-t tmpfs -o ro tmpfs /var/lib"
FILES = ("README.txt", "manifest.json", "core", "evidence/witness/cmdline", "evidence/freeze/freeze.json")
EXIT_NOT_STORED = 5


def captured(pid: int, precious: Path) -> subprocess.CompletedProcess[str]:
    """Capture to where nothing can be written, while a stranger takes whatever folder shows."""
    words = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--out", "/proc/nowhere"]
    watched = ("/dev/shm", "/run", "/var/tmp")  # noqa: S108 - where captures work
    with strangers.at_once(lambda: strangers.rename_and_lay_links(watched, precious, FILES)):
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=lab.HOUSE, timeout=150)
    assert precious.read_bytes() == SECRET, done.stderr
    return done


def test_a_capture_whose_every_place_a_stranger_took_writes_for_him_nowhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(SECRET)
    precious.chmod(0o600)
    with lab.qemu("7.2", name="taken") as machine:

        def into_a_folder_of_our_own() -> None:
            done = captured(machine.pid, precious)
            assert done.returncode == 0, done.stderr
            (bundle,) = Path("/var/tmp").glob("autopsy-*/*.tar.zst")  # noqa: S108 - that is where it goes
            assert verify(bundle).files > 20
            assert bundle.parent.stat().st_mode & 0o777 == 0o700

        def nowhere() -> None:
            done = captured(machine.pid, precious)
            assert done.returncode == EXIT_NOT_STORED, done.stderr
            assert "--out DIR" in done.stderr

        strangers.in_another_view((*THEIRS, NO_STATE, "-t tmpfs -o mode=1777 tmpfs /var/tmp"), into_a_folder_of_our_own)
        strangers.in_another_view((*THEIRS, NO_STATE, "-t tmpfs -o ro tmpfs /var/tmp"), nowhere)
        assert machine.qmp("query-status")["running"]
