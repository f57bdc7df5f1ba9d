"""The advice of each wedge, run as it is printed, cures it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopsy.drill.machine import ask
from autopsy.drill.process import states
from autopsy.drill.scenarios import Wedged, wedged
from autopsy.drill.wedges import WRITES
from support import lab
from support.verdicts import captured

pytestmark = pytest.mark.live

SECONDS = 20


def asked(it: Wedged, command: str) -> Any:
    """Ask the monitor that the drill's note names."""
    monitor = Path(it.note.partition("monitor ")[2].partition(": ")[0])
    return ask(monitor, command, {}, within=SECONDS)


def writes_are_done(it: Wedged) -> bool:
    return sum(each["stats"]["wr_operations"] for each in asked(it, "query-blockstats")) >= WRITES


def runs(it: Wedged) -> bool:
    return not {"T", "t"} & set(states(it.pid)) and asked(it, "query-status")["status"] == "running"


CURED: dict[str, Callable[[Wedged], bool]] = {
    "throttle": writes_are_done,
    "throttle-node": writes_are_done,
    "nbd-silent": writes_are_done,
    "drain": writes_are_done,
    "frozen-fs": writes_are_done,
    "frozen-fs-native": runs,
    "fuse-stuck": writes_are_done,
    "stopped": runs,
    "paused": runs,
}


@pytest.mark.parametrize("scenario", CURED)
def test_the_first_advice_run_as_printed_cures_the_vm(scenario: str, tmp_path: Path) -> None:
    if scenario.startswith(("frozen", "fuse")):
        lab.need_root()
    with wedged(scenario) as it:
        verdict = captured(it.pid, tmp_path).answer["verdict"]
        first = verdict["advice"][0]
        assert first["when"] == "now"
        done = subprocess.run(  # a person would paste it into a shell
            ["sh", "-c", first["command"]], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, (first["command"], done.stderr)
        lab.until(f"`{first['command']}` cures it", lambda: CURED[scenario](it))
        assert Path(f"/proc/{it.pid}").exists()
