"""The second look, where it is begun while the first core is still examined."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.virtio import RingPlace, RingsLook, VirtioDevice, VirtioShapes
from autopsy.capture import second_exposure
from autopsy.capture.gdb import step as gdb
from autopsy.capture.proc import witness
from autopsy.capture.step import Deadline, Scene, StepAtWork
from support import looking

NOTHING = VirtioShapes(first=(), second=None)
RING = RingPlace(index=0, avail=0x1000, used=0x2000)
DISK = VirtioDevice(
    address=0x100,
    device="vd0",
    device_type="virtio-blk-device",
    broken=False,
    vhost_started=False,
    queues=(),
    rings=(RING,),
)
WITH_RINGS = VirtioShapes(first=(DISK,), second=None)


@contextmanager
def beside(place: Path) -> Iterator[tuple[Scene, subprocess.Popen[bytes]]]:
    """Make the scene of a second look, beside an examination that is at work."""
    (place / "evidence" / layout.GDB_THREADS).mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as other, looking.scene(os.getpid(), place, layout.SECOND_EXPOSURE) as at:
        pidfd = os.pidfd_open(other.pid)
        try:
            yield replace(at, beside=StepAtWork(pidfd, Deadline(20))), other
        finally:
            os.close(pidfd)
            other.kill()


def store(place: Path, file: str, record: msgspec.Struct) -> None:
    (place / "evidence" / layout.GDB_THREADS / file).write_bytes(msgspec.json.encode(record))


def waited(at: Scene, then: threading.Timer) -> float:
    began = time.monotonic()
    then.start()
    second_exposure._wait_for_ring_words(at)
    then.join()
    return time.monotonic() - began


def test_the_second_snapshot_waits_for_the_words_of_rings_that_are_to_be_of_before_it(tmp_path: Path) -> None:
    with beside(tmp_path) as (at, _):
        store(tmp_path, layout.VIRTQUEUES, WITH_RINGS)
        words = threading.Timer(0.3, store, (tmp_path, layout.RING_WORDS, RingsLook(taken_ns=1, words=())))
        assert 0.3 <= waited(at, words) < 5


def test_the_second_snapshot_waits_until_it_is_known_that_there_are_no_rings(tmp_path: Path) -> None:
    with beside(tmp_path) as (at, _):
        assert 0.3 <= waited(at, threading.Timer(0.3, store, (tmp_path, layout.VIRTQUEUES, NOTHING))) < 5


def test_the_second_snapshot_waits_for_no_examination_that_has_ended(tmp_path: Path) -> None:
    with beside(tmp_path) as (at, other):
        assert 0.3 <= waited(at, threading.Timer(0.3, other.kill)) < 5


@pytest.mark.parametrize("step", [layout.GDB_THREADS, layout.SECOND_EXPOSURE])
def test_an_examination_reads_nothing_that_a_later_step_is_at_work_on(step: str, tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, layout.PROC_FDS) as later:
        later.write(layout.FDS, b"half of it")
    with looking.scene(os.getpid(), tmp_path, step) as at, gdb.frozen(at, tmp_path / "core", tmp_path) as given:
        read = given.read(layout.evidence(layout.PROC_FDS, layout.FDS))
    assert read == (b"" if step == layout.GDB_THREADS else b"half of it")


def test_the_threads_are_looked_at_again_as_long_after_the_first_look_as_the_memory_is(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, layout.WITNESS) as first:
        witness.witness_threads(first)
        told = int(looking.found(first, layout.TASKS)["clock/end"].data)
    with looking.scene(os.getpid(), tmp_path, layout.SECOND_EXPOSURE) as at:
        assert second_exposure._witnessed(at, told / 1e9 + 1) == told / 1e9
        assert second_exposure._witnessed(at, told / 1e9 - 1) == told / 1e9 - 1  # never after the memory's turn
        began = time.monotonic()
        second_exposure._wait(replace(at, options=replace(at.options, gap=0.5)), began - 0.2)
        assert 0.3 <= time.monotonic() - began < 5


def test_where_the_first_look_did_not_end_the_threads_wait_as_the_memory_does(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, layout.SECOND_EXPOSURE) as at:
        assert second_exposure._witnessed(at, 4.5) == 4.5
