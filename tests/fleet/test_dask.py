"""A Dask cluster gives the rows that one process gives, and what it loses is told and done again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.errors import ExitCode
from fleet import many_cases
from support.built import fleets

START_SECONDS = 60


@dataclass(slots=True)
class Cluster:
    """A scheduler and two workers, each a process of its own."""

    folder: Path
    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]

    def worker(self) -> None:
        """Start one worker more."""
        words = ("worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "10")
        self.workers.append(_dask(self.folder, *words))


def _dask(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    with open(folder / "dask.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words, "--local-directory", str(folder)]
            if words[0] == "worker"
            else [sys.executable, "-m", "dask", *words],
            stdout=log,
            stderr=log,
            cwd=folder,
        )


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    file = folder / "scheduler.json"
    scheduler = _dask(
        folder, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
    )
    it = Cluster(folder, "", scheduler, [])
    try:
        until = time.monotonic() + START_SECONDS
        while not (file.exists() and file.read_text().endswith("}")):
            assert scheduler.poll() is None, (folder / "dask.log").read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.1)
        it.address = json.loads(file.read_text())["address"]
        for _ in range(2):
            it.worker()
        yield it
    finally:
        for process in (*it.workers, scheduler):
            process.kill()
            process.wait()


def make(folder: Path, count: int = 40) -> Path:
    many_cases.make(folder, count, tuple(many_cases.cases())[:8])
    return folder


def test_two_workers_give_the_rows_of_one_process(tmp_path: Path) -> None:
    bundles = make(tmp_path / "bundles")
    with cluster(tmp_path) as it:
        told = fleets.asked("diagnose", bundles, "--into", tmp_path / "dask", "--dask", it.address, "--chunk", 20)
    assert (told["bundles"], told["errors"], len(told["parts"])) == (40, 0, 2)
    fleets.index(tmp_path / "one", bundles)
    assert fleets.rows(tmp_path / "dask") == fleets.rows(tmp_path / "one")


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_worker_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    bundles = make(tmp_path / "bundles", 60)
    into = tmp_path / "dask"
    with cluster(tmp_path) as it:
        words = ("fleet", "diagnose", str(bundles), "--into", str(into), "--dask", it.address, "--chunk", "10")
        running = subprocess.Popen(
            [sys.executable, "-m", "autopsy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while not list(into.glob("*/*.parquet")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        it.workers[0].kill()
        running.communicate(timeout=300)
        assert running.returncode == ExitCode.DONE
    assert len({row["bundle"] for row in fleets.rows(into)}) == 60
    assert {row["error"] for row in fleets.rows(into)} == {""}


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_scheduler_that_is_killed_is_told_and_another_goes_on(tmp_path: Path) -> None:
    bundles = make(tmp_path / "bundles", 60)
    into = tmp_path / "dask"
    words = ("fleet", "diagnose", str(bundles), "--into", str(into), "--chunk", "10", "--dask")
    (tmp_path / "a").mkdir()
    with cluster(tmp_path / "a") as it:
        running = subprocess.Popen(
            [sys.executable, "-m", "autopsy", *words, it.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while not list(into.glob("*/*.parquet")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        it.scheduler.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=60)
        running.kill()
        _, said = running.communicate()
        assert running.returncode == ExitCode.NOT_STORED, said.decode()
    (tmp_path / "b").mkdir()
    with cluster(tmp_path / "b") as it:
        told = fleets.asked(*words[1:], it.address)
    assert 0 < told["known"] < 60
    assert len({row["bundle"] for row in fleets.rows(into)}) == 60
