"""Evidence is copied to a durable place beside the steps: a place that hangs is left, one that is slow is not."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autopsy.capture.staging import staging
from autopsy.capture.staging.copying import copy_new
from autopsy.capture.staging.settling import Copier
from autopsy.capture.staging.staging import Staging, prepare
from support import lab

Copy = Callable[[int, int], bytes]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Staging]:
    monkeypatch.setattr(staging, "SETTLE_SECONDS", 0.4)
    made = prepare(f"autopsy-settling-{os.getpid()}", (tmp_path / "first", tmp_path / "second"))
    yield made
    made.clear()
    assert not made.work.exists()


def at_first(mark: Path, then: Copy) -> Copy:
    """Return a copy that does something else the first time."""

    def copy(work: int, durable: int) -> bytes:
        if mark.exists():
            return copy_new(work, durable)
        mark.touch()
        return then(work, durable)

    return copy


def slowly(work: int, durable: int) -> bytes:
    """Copy as on a host that is starved: a little at a time."""
    null = os.open("/dev/null", os.O_WRONLY)
    ends = time.monotonic() + 1.2
    while time.monotonic() < ends:
        os.write(null, b"x")
        time.sleep(0.02)
    return copy_new(work, durable)


def never(_work: int, _durable: int) -> bytes:
    time.sleep(600)
    return b""


def test_one_process_makes_every_copy_and_ends_with_the_capture(tmp_path: Path) -> None:
    stage = prepare(f"autopsy-settling-{os.getpid()}", (tmp_path,))
    pids = set()
    for name in ("one", "two", "three"):
        stage.put(name, name.encode())
        stage.settle()
        assert stage.settling is not None
        pids.add(stage.settling.child.pid)
        stage.settled()
        assert (stage.durable / name).read_bytes() == name.encode()
    (pid,) = pids
    assert Path(f"/proc/{pid}").exists()
    stage.clear()
    assert not Path(f"/proc/{pid}").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_copier_that_was_killed_between_two_copies_is_replaced(stage: Staging) -> None:
    stage.settle()
    stage.settled()
    assert stage.copier.child is not None
    os.kill(stage.copier.child.pid, signal.SIGKILL)
    lab.until("it is dead", lambda: ended(stage.copier))
    stage.put("one", b"1")
    stage.settle()
    stage.settled()
    assert (stage.durable / "one").read_bytes() == b"1"
    assert stage.notes == []


def ended(copier: Copier) -> bool:
    assert copier.child is not None
    poller = select.poll()
    poller.register(copier.child.pidfd, select.POLLIN)
    return bool(poller.poll(0))


def test_a_copy_that_goes_on_is_let_go_on_and_what_is_new_goes_after_it(
    stage: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "copy_new", at_first(tmp_path / "mark", slowly))
    stage.put("one", b"1")
    stage.settle()
    time.sleep(0.6)  # longer than a place may hang
    stage.put("two", b"2")
    stage.settle()
    assert stage.lagging
    stage.settled(10)
    assert not stage.lagging
    assert stage.notes == []
    assert stage.durable == stage.copy_in(tmp_path / "first")
    assert (stage.durable / "one").read_bytes() + (stage.durable / "two").read_bytes() == b"12"


def test_a_place_that_is_only_slow_is_not_left_though_its_copy_is_not_done(
    stage: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "copy_new", at_first(tmp_path / "mark", slowly))
    stage.settle()
    stage.settled(0.5)
    assert stage.places == [tmp_path / "first", tmp_path / "second"]
    assert stage.lagging
    assert "too slow" in stage.notes[0]


def test_a_place_that_hangs_is_left_for_the_next(
    stage: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "copy_new", at_first(tmp_path / "mark", never))
    stage.put("one", b"1")
    stage.settle()
    time.sleep(0.6)
    stage.settle()
    assert stage.places == [tmp_path / "second"]
    assert "no answer in 0.4 s" in stage.notes[0]
    stage.settled(10)
    assert (stage.copy_in(tmp_path / "second") / "one").read_bytes() == b"1"
