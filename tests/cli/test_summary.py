"""The block at the end is read at a glance: what is wrong, what to do, what became of the VM."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from autopsy.cli import summary
from autopsy.cli.terminal import Interrupt, LiveList
from autopsy.diagnose.verdict import diagnose
from autopsy.drill.scenarios import wedged
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

SECONDS = 90


def lines(case: e.Case, *, alive: bool = True) -> list[str]:
    return list(summary.verdict(diagnose(gather_facts(case.bundle())), alive=alive))


def test_a_stopped_vm_is_stuck_and_its_cure_is_the_next_line_that_is_bold() -> None:
    told = lines(cases.stopped())
    assert told[0].startswith("STUCK    The process is stopped")
    assert told[0].endswith("(proven)")
    assert told[1].startswith("DO       kill -CONT ")


def test_a_vm_that_was_killed_is_not_to_be_cured() -> None:
    assert not [line for line in lines(cases.stopped(), alive=False) if line.startswith(("DO", "IF NOT"))]


def test_a_healthy_vm_and_a_paused_one_are_called_so() -> None:
    assert lines(cases.healthy_idle())[0].startswith("HEALTHY  ")
    assert lines(cases.paused())[0].startswith("PAUSED   ")


def on_a_terminal(*words: str, **environment: str) -> bytes:
    """Run the command with a terminal for its output, and return what it drew."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "autopsy", *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, **environment}
    ) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            drawn += data
        process.wait(SECONDS)
    os.close(ours)
    return drawn


@pytest.mark.live
def test_on_a_terminal_only_bad_news_is_red_and_the_refused_kill_stands_below_the_verdict(tmp_path: Path) -> None:
    with wedged("stopped") as it:
        words = ("capture", f"pid:{it.pid}", "--fast", "--then-kill", "--out", str(tmp_path))
        drawn = on_a_terminal(*words, TERM="xterm", COLUMNS="80")
        assert b"\033[31mSTUCK" in drawn
        assert b"\033[31mVM       " in drawn
        assert b"NOT KILLED" in drawn
        assert drawn.index(b"STUCK") < drawn.index(b"NOT KILLED")
        assert b"of 11 steps have their evidence" in drawn
        assert b"Collected" not in drawn
        assert b"\033[3" not in on_a_terminal(*words, TERM="xterm", NO_COLOR="1").partition(b"STUCK")[2]


def test_on_a_narrow_terminal_a_row_is_broken_between_words_and_what_is_copied_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary.sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(summary, "get_terminal_size", lambda: os.terminal_size((44, 20)))
    text = "8 threads of QEMU wait for a frozen file system"
    assert summary.row("STUCK", text) == "STUCK    8 threads of QEMU wait for a frozen\n         file system"
    for label in ("DO", "report", "bundle"):
        assert "\n" not in summary.row(label, text)


@pytest.mark.live
def test_quiet_says_nothing_but_the_result(tmp_path: Path) -> None:
    with wedged("healthy") as it:
        command = [sys.executable, "-m", "autopsy", "capture", f"pid:{it.pid}", "--fast", "-q", "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        assert done.stderr == ""
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["HEALTHY", "VM", "report", "bundle"]


def without_monitor(case: e.Case) -> str:
    bundle = case.bundle()
    left = {name: data for name, data in bundle.files.items() if "qmp" not in name}
    return next(summary.verdict(diagnose(gather_facts(e.Fake(bundle.manifest, left)))))


def test_a_vm_that_could_not_be_asked_is_told_what_was_seen_all_the_same() -> None:
    assert without_monitor(cases.healthy_idle()).startswith("UNKNOWN  Nothing looks stuck: no request is parked")
    for stuck in (cases.nbd(), cases.frozen_threads(), cases.stopped()):
        assert "Nothing looks stuck" not in without_monitor(stuck)


class Screen:
    """What a list would draw on, and what was drawn last."""

    def __init__(self) -> None:
        self.console = Console(file=io.StringIO(), width=80)
        self.text = ""

    def update(self, table: Table, *, refresh: bool) -> None:
        assert refresh
        with self.console.capture() as captured:
            self.console.print(table)
        self.text = captured.get()


def test_an_interruption_is_a_line_of_the_list_and_leaves_room_for_what_the_terminal_echoes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    screen: Any = Screen()
    interrupt = Interrupt()
    listed = LiveList(interrupt, screen)
    listed.tell("kill: 0.1 s")
    assert "interrupted" not in screen.text
    interrupt.pressed = True
    listed.tell("kill: 0.2 s")
    assert "interrupted" in screen.text
    assert max(map(len, screen.text.splitlines())) <= 77
