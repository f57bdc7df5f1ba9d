"""The ring of samples, as a capture finds it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from autopsy.bundle.ring import Ring, RingHeader, RingSample
from autopsy.files.private import NotPrivate
from autopsy.target.identity import stat_of
from autopsy.watch import ring

HEADER = RingHeader(pid=42, start_ticks=7, boot_id="b", began_monotonic_ns=5, kind="disk")


def samples(*seconds: int) -> list[RingSample]:
    return [RingSample(monotonic_ns=each * 10**9, state="watched") for each in seconds]


def test_a_ring_reads_as_it_was_written(tmp_path: Path) -> None:
    folder = ring.open_run_folder(tmp_path / "autopsy" / "watch")
    ring.write(folder, Ring(HEADER, tuple(samples(1, 3))))
    os.close(folder)
    assert ring.read(tmp_path / "autopsy" / "watch" / "42-7.jsonl") == Ring(HEADER, tuple(samples(1, 3)))


def test_nobody_else_can_read_a_ring(tmp_path: Path) -> None:
    place = tmp_path / "autopsy" / "watch"
    folder = ring.open_run_folder(place)
    ring.write(folder, Ring(HEADER, ()))
    os.close(folder)
    assert [path.stat().st_mode & 0o777 for path in (place, place / "42-7.jsonl")] == [0o700, 0o600]


def test_a_folder_that_others_may_look_into_is_not_used(tmp_path: Path) -> None:
    place = tmp_path / "autopsy" / "watch"
    place.mkdir(parents=True)
    place.chmod(0o755)
    with pytest.raises(NotPrivate):
        ring.open_run_folder(place)


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"pid": 1}\nx', b"\xff" * 9])
def test_a_broken_ring_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "1-1.jsonl").write_bytes(data)
    assert ring.read(tmp_path / "1-1.jsonl") is None
    assert ring.read(tmp_path / "missing") is None


def test_a_ring_holds_a_minute() -> None:
    kept = deque(samples(*range(0, 100, 2)))
    ring.trimmed(kept, 98 * 10**9)
    assert [kept[0].monotonic_ns, kept[-1].monotonic_ns] == [38 * 10**9, 98 * 10**9]


def test_rings_of_processes_that_are_no_more_go_when_a_watch_begins(tmp_path: Path) -> None:
    mine = ring.file_name(os.getpid(), stat_of("/proc/self").start_ticks)
    for name in (mine, ring.file_name(os.getpid(), 1), ring.file_name(2**22 + 1, 7), "state.json", "other.jsonl"):
        (tmp_path / name).touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    ring.tidy(folder)
    os.close(folder)
    assert {path.name for path in tmp_path.iterdir()} == {mine, "state.json", "other.jsonl"}
