"""The watch's captures as units of systemd: told from a person's, and heard of with what they cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.watch import ring
from autopsy.watch.captures.unit import CaptureUnit, UnitStarter
from autopsy.watch.launch import CaptureLauncher
from autopsy.watch.model import CaptureResult
from support import lab, stored
from support.watching import own_systemd
from support.wedged import wedges_disks

TARGET = "libvirt:web1"


def stand_in(folder: Path, answer: int = 0, says: str = "") -> UnitStarter:
    """Return a starter whose systemctl is a stand-in: it copies what the unit would read when it is told to start."""
    units, run = folder / "units", folder / "run"
    for each in (units, run):
        each.mkdir(mode=0o700)
    (units / "autopsy@.service").touch()
    program = folder / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/told\ncp {run}/asked-* {folder}/read 2>&-\necho "{says}"\nexit {answer}\n'
    )
    program.chmod(0o755)
    return UnitStarter(run, (str(program),), (str(units),))


def test_a_unit_is_told_that_nobody_asked_to_keep_what_it_captures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "autopsy"))
    launcher = CaptureLauncher(tmp_path / "run", units=stand_in(tmp_path))
    assert launcher.start("web1", TARGET, 4242, light=False)
    assert (tmp_path / "told").read_text() == f"start --no-block autopsy@{TARGET}.service\n"
    assert (tmp_path / "read").read_text() == f'AUTOPSY_CAPTURE="--fast --out {tmp_path}/autopsy/expendable"\n'


def test_a_unit_that_does_not_start_leaves_no_word_for_a_persons_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "autopsy"))
    launcher = CaptureLauncher(tmp_path / "run", units=stand_in(tmp_path, answer=1))
    assert not launcher.start("web1", TARGET, 4242, light=False)
    assert list((tmp_path / "run").iterdir()) == []
    assert launcher.running == []


def test_what_a_units_capture_cost_stands_in_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "autopsy"))
    case = stored.right().bundle
    manifest = open_bundle(case).manifest
    launcher = CaptureLauncher(tmp_path / "run", units=stand_in(tmp_path, says="ActiveState=inactive\nResult=success"))
    assert launcher.start("web1", TARGET, manifest.target.pid, light=False)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number, place in enumerate((tmp_path / "autopsy/expendable", tmp_path / "autopsy")):
        shutil.copy(case, place / f"autopsy-web{number}-{stamp}.tar.zst")
    (unit,) = launcher.running
    assert isinstance(unit, CaptureUnit)
    unit.since -= 1.0
    (end,) = launcher.ended()
    assert (end.result, Path(end.bundle).name) == (CaptureResult.SEALED, f"autopsy-web0-{stamp}.tar.zst")
    assert end.stop_ms == sum(step.stop_ns for step in manifest.steps) / 1e6 > 0
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_watch_that_was_killed_has_left_goes_when_the_next_begins(tmp_path: Path) -> None:
    folder = ring.open_run_folder(tmp_path / "autopsy/watch")
    gone, another = f"capture-{2**22 + 1}-0a1b2c3d.json", f"capture-{os.getpid()}-0a1b2c3d.json"
    for name in (gone, another, f"asked-{TARGET}.env", "state.json", "another's"):
        (tmp_path / "autopsy/watch" / name).touch()
    ring.tidy(folder)
    assert {each.name for each in (tmp_path / "autopsy/watch").iterdir()} == {another, "state.json", "another's"}


@pytest.mark.live
@pytest.mark.soak  # ten seconds
def test_systemd_runs_a_capture_of_the_watchs_and_a_persons_is_kept(stock: lab.Build, short: Path) -> None:
    lab.need_root()
    if not Path(own_systemd.SYSTEMD).exists() or shutil.which("unshare") is None:
        lab.missing("systemd is not here: apt install systemd")
    cgroup = Path("/proc/self/cgroup")
    words = ["unshare", "--mount", "--propagation", "private", sys.executable, own_systemd.__file__, str(short)]
    with wedges_disks.throttled(stock) as stuck:
        group = cgroup.read_bytes()
        done = subprocess.run([*words, str(stuck.vm.pid)], capture_output=True, text=True, check=False, timeout=180)
        assert cgroup.read_bytes() == group  # it has moved nobody else
    assert done.returncode == 0, done.stderr + (short / "log").read_text()
    began, [[result, bundle, stop_ms]], left, found, persons = json.loads(done.stdout)
    assert (began, result, left) == (True, CaptureResult.SEALED, []), (short / "log").read_text()
    assert [[path, expendable, options[:2], cost] for path, expendable, options, cost in found] == [
        [bundle, True, ["capture", "--fast"], stop_ms]
    ]
    assert persons == f"capture -- pid:{stuck.vm.pid}\n"
