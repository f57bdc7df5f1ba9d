"""The deadlock that few hosts can have is drilled by a stored capture of it, which advises nothing about this host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from autopsy.drill.scenarios import SCENARIOS
from autopsy.drill.stored import STORED_DRILLS


def drill(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autopsy", "drill", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_it_is_listed_with_the_qemu_that_it_needs() -> None:
    (line,) = (line for line in drill("--list").stdout.splitlines() if line.startswith("throttle-deadlock "))
    assert "needs QEMU 9.0 to 10.0.8" in line
    assert {stored.name for stored in STORED_DRILLS}.isdisjoint(scenario.name for scenario in SCENARIOS)


def test_it_walks_through_verdict_bug_and_report_and_gives_no_command_for_a_process_of_another_host(
    tmp_path: Path,
) -> None:
    done = drill("throttle-deadlock", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("STUCK    Thread 23559 (IO iothread4) waits for a throttle group's mutex")
    assert "\nbug      " in done.stdout
    assert "10.0.9" in done.stdout
    assert "kill -KILL" not in done.stdout
    (report,) = (tmp_path / "out").glob("autopsy-throttle-deadlock-*.html")
    assert "throttle group" in report.read_text()
    assert f"report   {report}" in done.stdout


def test_programs_are_told_as_well(tmp_path: Path) -> None:
    told = json.loads(drill("throttle-deadlock", "--json", "--out", tmp_path).stdout)
    assert (told["verdict"]["signature"], told["verdict"]["known_bugs"][0]["in_this_build"]) == (
        "throttle-lock-self-deadlock",
        "affected",
    )
    assert Path(told["bundle"]).is_file()
