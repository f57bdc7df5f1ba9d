"""What `gdb -p` and gcore take of a live wedge still tells what the capture tells, or says that it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support import lab
from support.verdicts import captured
from support.wedged import wedges, wedges_disks
from support.wedged.wedges import Stuck

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]  # gdb reads a debug build for minutes on a busy machine

SECONDS = 240
TABLE = os.environ.get("AUTOPSY_IMPORT_TABLE", "")


@dataclass(frozen=True, slots=True)
class Wedge:
    """A wedge on one QEMU, and where the text and the core may say that it is stuck."""

    name: str
    set_up: Callable[[lab.Build], AbstractContextManager[Stuck]]
    build: str
    by_text: frozenset[str]
    by_core: frozenset[str]


def answers(words: str) -> frozenset[str]:
    return frozenset(words.split())


# None with a thread in state D: neither `gdb -p` nor gcore comes back from such a process.
WEDGES = (
    Wedge("a drive's own limits", wedges_disks.throttled, "10.0.2-debug", answers("unknown"), answers("throttle")),
    Wedge(
        "a drain over a stopped NBD server",
        partial(wedges_disks.nbd_stopped, stopping=True),
        "10.0.2-debug",
        answers("unknown"),
        answers("peer"),
    ),
    Wedge("a stopped NBD server", wedges_disks.nbd_stopped, "7.2", answers("unknown"), answers("peer unknown")),
    Wedge(
        "a `stop` over blkdebug", wedges_disks.stop_over_blkdebug, "10.0.2-debug", answers("unknown"), answers("block")
    ),
    Wedge("a console that nobody reads", wedges.console_unread, "10.0.2-debug", answers("control"), answers("control")),
    Wedge(
        "a vhost-user back end",
        partial(wedges.back_end_stopped, stopping=True),
        "7.2",
        answers("peer"),
        answers("peer"),
    ),
)


def text_of(pid: int) -> str:
    """Return what a person would paste."""
    command = ["gdb", "-nx", "-p", str(pid), "-batch", "-ex", "thread apply all bt"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    ).stdout


def core_of(pid: int, place: Path) -> Path:
    subprocess.run(
        ["gcore", "-o", str(place / "core"), str(pid)],
        capture_output=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return place / f"core.{pid}"


def imported(file: Path, place: Path, *more: str) -> dict[str, Any]:
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "import", str(file), "--json", "--out", str(place), *more],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)["verdict"]
    assert isinstance(verdict, dict)
    return verdict


@pytest.mark.parametrize(
    "wedge",
    [
        pytest.param(each, id=each.name, marks=() if each in {WEDGES[0], WEDGES[-1]} else pytest.mark.soak)
        for each in WEDGES
    ],
)
def test_what_others_took_of_a_wedge_tells_it_or_says_that_it_cannot(wedge: Wedge, tmp_path: Path) -> None:
    lab.need_root()
    with wedge.set_up(lab.build(wedge.build)) as stuck:
        own = captured(stuck.vm.pid, tmp_path)
        pasted = tmp_path / "bt.txt"
        pasted.write_text(text_of(stuck.vm.pid))
        core = core_of(stuck.vm.pid, tmp_path)
        stuck.lift()
    text = imported(pasted, tmp_path / "text")
    whole = imported(core, tmp_path / "whole", "--debug-file", str(lab.build(wedge.build).binary))
    if TABLE:
        told = (own.answer["verdict"], text, whole)
        cells = (f"{each['where']} ({each['signature']}, {each['confidence']})" for each in told)
        with open(TABLE, "a") as stream:
            stream.write(f"| {wedge.name}, {wedge.build} | {' | '.join(cells)} |\n")
    assert text["where"] in wedge.by_text, text["headline"]
    assert whole["where"] in wedge.by_core, whole["headline"]
    assert {text["confidence"], whole["confidence"]} <= {"consistent", "possible", "proven"}
