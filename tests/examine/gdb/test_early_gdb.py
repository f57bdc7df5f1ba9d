"""A gdb that is started before it is known what it is to print."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from autopsy.examine.gdb.mi import NoGdb
from autopsy.examine.gdb.printed import EarlyGdb
from autopsy.linux import environment


def test_the_gdb_that_has_started_is_the_first_to_be_taken_and_others_come_after_it(tmp_path: Path) -> None:
    with EarlyGdb(tmp_path, without="") as early:
        started = early.pid
        with early.take(tmp_path, time.monotonic() + 20) as first:
            assert first.pid == started
            assert first.run("print 6 * 7").text == "$1 = 42\n"
        with early.take(tmp_path, time.monotonic() + 20) as second:
            assert second.pid != started
            assert second.run("print 6 * 7").whole


def test_a_gdb_that_nobody_takes_is_ended(tmp_path: Path) -> None:
    with EarlyGdb(tmp_path, without="") as early:
        pid = early.pid
        assert pid is not None
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_gdb_that_is_to_be_spared_is_not_started(tmp_path: Path) -> None:
    with EarlyGdb(tmp_path, without="the host is starved") as early:
        assert early.pid is None
        with pytest.raises(NoGdb, match="was spared, the host is starved"):
            early.take(tmp_path, time.monotonic() + 20)


def test_where_there_is_no_gdb_whoever_takes_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PATH", str(tmp_path))
    with EarlyGdb(tmp_path, without="") as early, pytest.raises(NoGdb, match="is not installed"):
        early.take(tmp_path, time.monotonic() + 20)


def test_what_is_begun_at_once_is_answered_in_order(tmp_path: Path) -> None:
    with EarlyGdb(tmp_path, without="") as early, early.take(tmp_path, time.monotonic() + 20) as gdb:
        first, second = gdb.begin("echo one"), gdb.begin("echo two")
        assert (gdb.answer(first).text, gdb.answer(second).text) == ("one", "two")
