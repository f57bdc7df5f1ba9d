"""What a hostile VM, a full disk or our own death does to the watch of all the others."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from autopsy.files import private
from autopsy.target.identity import stat_of
from autopsy.watch import state
from autopsy.watch.discovery import FoundVm
from autopsy.watch.limits import Go
from autopsy.watch.loop import Watch
from autopsy.watch.model import CaptureResult, StallKind, Suppression
from autopsy.watch.sampler import MOST_THREADS, VmFiles
from autopsy.watch.serving.outlet import Outlet, RoundFeed
from autopsy.watch.stages import StallEpisode, Wish
from support.watching import rounds

DISK = StallKind.DISK
THREADS = """
import threading, time
for _ in range({count}):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def process(count: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with so many threads beside its first."""
    words = [sys.executable, "-c", THREADS.format(count=count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"up\n"
            yield started
        finally:
            started.kill()


def files_of(pid: int) -> VmFiles:
    return VmFiles(pid, stat_of(f"/proc/{pid}").start_ticks)


def test_a_vm_of_very_many_threads_takes_no_more_descriptors_than_others_can_spare() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with process(MOST_THREADS + 200) as hostile:
        files = files_of(hostile.pid)
        try:
            sample = files.sample(time.monotonic_ns(), closely=False)
            assert sample is not None
            assert sample.threads == MOST_THREADS
            assert hostile.pid in files.threads, "its main thread is the oldest"
            assert len(os.listdir("/proc/self/fd")) <= before + MOST_THREADS + 3
        finally:
            files.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_vm_that_has_ended_and_a_number_that_means_another_process_now_are_not_sampled() -> None:
    with process() as vm:
        files = files_of(vm.pid)
        another = VmFiles(vm.pid, files.start_ticks + 1)
        assert files.sample(time.monotonic_ns(), closely=True) is not None
        assert another.sample(time.monotonic_ns(), closely=True) is None
        vm.kill()
        vm.wait()
        assert files.sample(time.monotonic_ns(), closely=True) is None
        files.close()
        another.close()


class Launcher:
    """Takes every capture, and says which."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, vm: str, target: str, pid: int, *, light: bool, patient: bool = False) -> bool:
        assert (vm, pid) == (target, 7)
        self.started.append(f"{target}{' light' if light else ''}{' patient' if patient else ''}")
        return True


def stalled(watch: Watch, target: str, name: str, at: float, wish: Wish = Wish.CAPTURE) -> None:
    """Have a VM stall, and the watch do what that calls for; the capture ends at once."""
    vm = FoundVm(pid=7, start_ticks=1, name=name, target=target, manager="libvirt")
    each = SimpleNamespace(vm=vm, stages=SimpleNamespace(wish=lambda: wish))
    watch._capture(each, StallEpisode(DISK, at - 9, seconds=9.0), at)  # type: ignore[arg-type]  # as much as it looks at
    watch.gate.ended(target)


def test_a_vm_that_is_named_like_another_uses_up_none_of_its_captures() -> None:
    launcher = Launcher()
    watch = Watch(launcher=launcher)  # type: ignore[arg-type]  # it starts nothing
    for minute in range(3):
        stalled(watch, "libvirt:mallory", "db", 10_000.0 + minute * 1300)
    assert launcher.started == ["libvirt:mallory"] * 2
    stalled(watch, "libvirt:db", "db", 14_000.0)
    assert launcher.started[-1] == "libvirt:db"


def test_a_watch_that_was_killed_and_begun_again_captures_no_more_for_that() -> None:
    left = rounds.of(
        rounds.vm("a", captures={CaptureResult.SEALED: 5}, last_bundle_at=time.time() - 600),
        rounds.vm("b", captures={CaptureResult.SEALED: 5}, last_bundle_at=time.time() - 4000),
        rounds.vm("c", captures={CaptureResult.SEALED: 5}, last_bundle_at=time.time() + 4000),
    )
    gate = Watch(left=left).gate
    now = time.monotonic()
    assert gate.may_capture("libvirt:a", DISK, now, 9.0) is Suppression.VM
    assert gate.may_capture("libvirt:b", DISK, now, 9.0) == Go()
    gate.ended("libvirt:b")
    assert gate.may_capture("libvirt:c", DISK, now + 60, 9.0) == Go()


def test_a_full_run_folder_costs_the_state_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        state.write(folder, b"whole")
        monkeypatch.setattr(private, "replace", full)
        state.write(folder, b"another")
    finally:
        os.close(folder)
    assert (tmp_path / state.FILE).read_bytes() == b"whole"


def _echo(feed: RoundFeed) -> None:
    feed.ready()
    signal.pause()


def test_a_watch_of_very_many_vms_still_serves() -> None:
    """select(2) knows no descriptor beyond 1,023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("no more descriptors are to be had here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            opened.enter_context(open(os.devnull, "rb"))
        outlet = Outlet("echo", _echo)
        opened.callback(outlet.close)
        outlet.open()
        outlet.put(b"x")
        assert outlet.deaths == 0
