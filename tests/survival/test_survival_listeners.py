"""A capture waits for nobody who hears of it: its log's disk is full or frozen, its reader has stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from autopsy.bundle.verify import verify
from autopsy.cli import streams
from support import lab
from support.surviving import HOUSE, at_leisure

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

MOST_SECONDS = 30


def bundle_of(out: Path) -> Path:
    (found,) = out.glob("*.tar.zst")
    return found


def captured(pid: int, out: Path, *words: str, stdout: int, stderr: int) -> int:
    out.mkdir()
    command = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--out", str(out), *words]
    running = subprocess.Popen(
        command,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        stdout=stdout,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
    )
    try:
        return running.wait(MOST_SECONDS)
    finally:
        running.kill()


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def stuffed() -> Iterator[int]:
    """Yield a pipe's end that has no room left; nobody reads."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while os.write(writing, bytes(4096)):
                pass
        os.set_blocking(writing, True)
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def test_a_log_on_a_frozen_file_system_holds_up_neither_capture_nor_kill(tmp_path: Path) -> None:
    with at_leisure() as vm, lab.file_system() as place, opened(place.mount / "log") as log, lab.frozen(place):
        assert captured(vm.pid, tmp_path / "a", "--then-kill", "--even-if-healthy", stdout=log, stderr=log) == 0
        assert verify(bundle_of(tmp_path / "a")).files
        assert not vm.process.alive()


def test_a_result_that_nobody_takes_is_told_on_stderr_with_the_bundle(tmp_path: Path) -> None:
    with at_leisure() as vm, opened("/dev/full") as full, stuffed() as stuck:
        for name, stdout, why in (("full", full, "No space left"), ("stuck", stuck, "it takes nothing")):
            with opened(tmp_path / f"{name}.err") as errors:
                assert captured(vm.pid, tmp_path / name, stdout=stdout, stderr=errors) == 0
            told = (tmp_path / f"{name}.err").read_text()
            assert f"note: stdout: {why}" in told
            assert str(bundle_of(tmp_path / name)) in told
            assert "witness " in told


def test_a_story_that_nobody_takes_leaves_the_result(tmp_path: Path) -> None:
    with at_leisure() as vm, opened("/dev/full") as full, stuffed() as stuck:
        for name, stderr in (("full", full), ("stuck", stuck)):
            with opened(tmp_path / f"{name}.out") as results:
                assert captured(vm.pid, tmp_path / name, stdout=results, stderr=stderr) == 0
            assert str(bundle_of(tmp_path / name)) in (tmp_path / f"{name}.out").read_text()


def test_what_is_printed_comes_out_in_order_and_the_streams_are_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams.guarded() as listeners:
        for number in range(3):
            sys.stdout.write(f"out {number} ü\n" * 100)
            sys.stderr.write(f"err {number}\n")
    assert (sys.stdout, sys.stderr) == before
    told = capfd.readouterr()
    assert told.out == "".join(f"out {number} ü\n" * 100 for number in range(3))
    assert told.err == "err 0\nerr 1\nerr 2\n"
    assert listeners.out is not None
    assert not listeners.out.lost
