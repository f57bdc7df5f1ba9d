"""`--live-gdb`, for what cannot be frozen: here a capture that the kernel tells of another architecture (setarch)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.capture.gdb import guardian
from autopsy.capture.gdb.attach import may_not_attach
from autopsy.drill.machine import Machine
from autopsy.drill.process import start, states
from autopsy.drill.site import site
from support import lab
from support.surviving import (
    _every_capture_ends,  # noqa: F401 - a fixture
    assert_no_orphan,
    assert_unharmed,
    busy,
    capture,
    children,
    namespace,
    orphans_come_to_us,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

ELSEWHERE = ("setarch", "i686")
KILLS = 8


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with busy() as machine:
        yield machine


LEAVES_A_STOPPED_CHILD = """
import os, signal, sys, time
child = os.fork()
if child == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as gdb does: the kernel sends it to a stopped group without a parent
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_what_a_killed_debugger_started_ends_with_it_and_nobody_else_does() -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as vm,
        subprocess.Popen(["sleep", "60"], process_group=0) as bystander,
        subprocess.Popen(
            [sys.executable, "-c", LEAVES_A_STOPPED_CHILD], process_group=0, stdout=subprocess.PIPE
        ) as debugger,
    ):
        try:
            assert debugger.stdout is not None
            child = int(debugger.stdout.readline())
            lab.until("its child is stopped", lambda: "T" in states(child))
            pidfd = os.pidfd_open(vm.pid)
            keeper = guardian.post(vm.pid, pidfd, debugger.pid)
            debugger.kill()
            debugger.wait()
            assert not keeper.word(seconds=20)
            lab.until("its child is gone", lambda: not Path(f"/proc/{child}/exe").exists())
            assert (vm.poll(), bystander.poll()) == (None, None)
            os.close(pidfd)
        finally:
            for each in (vm, bystander, debugger):
                each.kill()


def test_an_attached_gdb_shows_every_thread_and_lets_the_vm_go_on(vm: Machine, tmp_path: Path) -> None:
    known = set(children())
    with orphans_come_to_us():
        done = capture(vm.pid, tmp_path, "--fast", "--live-gdb", before=ELSEWHERE)
        assert done.end() == 0, done.story
        assert_no_orphan(known)
    assert_unharmed(vm)
    assert done.outcomes()[layout.FREEZE] == "Failed"
    assert done.outcomes()[layout.GDB_THREADS] == "Collected", done.story
    bundle = open_bundle(done.bundle)
    step = next(each for each in bundle.manifest.steps if each.name == layout.GDB_THREADS)
    assert step.stop_ns > 0
    backtrace = bundle.read("evidence/gdb.threads/backtrace.txt").decode()
    for tid in os.listdir(f"/proc/{vm.pid}/task"):
        assert f"LWP {tid}" in backtrace
    assert b'"function": "' in bundle.read("evidence/gdb.threads/threads.json")


def test_a_qemu_behind_an_explicit_loader_has_its_own_names_in_the_backtrace(tmp_path: Path) -> None:
    binary = lab.build("7.2").binary.resolve()
    with site() as there:
        monitor = there.folder / "qmp.sock"
        small = ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-name", "loaded")
        loader = ("env", "QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu", "/lib64/ld-linux-x86-64.so.2")
        vm = start(there, [*loader, binary, *small, "-qmp", f"unix:{monitor},server=on,wait=off"], log="qemu.log")
        vm.wait_until("it listens", monitor.exists)
        vm.wait_until("its loop runs", lambda: "poll" in Path(f"/proc/{vm.pid}/wchan").read_text())
        done = capture(vm.pid, tmp_path, "--fast", "--live-gdb", before=ELSEWHERE)
        assert done.end() == 0, done.story
        assert "T" not in states(vm.pid)
    backtrace = open_bundle(done.bundle).read("evidence/gdb.threads/backtrace.txt").decode()
    # The RCU thread's, which sleeps: the main thread may still be putting the answer to our own question away.
    assert "qemu_event_wait" in backtrace, backtrace


def test_where_it_was_not_asked_for_nothing_is_attached(vm: Machine, tmp_path: Path) -> None:
    done = capture(vm.pid, tmp_path, "--fast", before=ELSEWHERE)
    assert done.end() == 0, done.story
    assert done.outcomes()[layout.GDB_THREADS] == "Skipped"
    assert "--live-gdb" in done.story
    assert_unharmed(vm)


def test_what_can_be_frozen_is_frozen_all_the_same(vm: Machine, tmp_path: Path) -> None:
    done = capture(vm.pid, tmp_path, "--fast", "--live-gdb")
    assert done.end() == 0, done.story
    assert done.outcomes()[layout.FREEZE] == "Collected"
    step = next(each for each in open_bundle(done.bundle).manifest.steps if each.name == layout.GDB_THREADS)
    assert (step.outcome, step.stop_ns) == ("Collected", 0)
    assert_unharmed(vm)


def test_no_gdb_is_attached_while_a_thread_cannot_stop() -> None:
    """It would hang for ever, with every other thread stopped."""
    with lab.folder() as place, lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "disk.raw")
        words = ("-drive", f"if=none,id=disk0,format=raw,file={image}", "-device", "virtio-blk-pci,drive=disk0")
        with lab.qemu("7.2", *words) as machine:
            assert may_not_attach(machine.pid) == ""
            with lab.frozen(mounted):
                machine.qemu_io("disk0", "aio_write 0 4k")
                lab.until("a worker sleeps in the kernel", lambda: lab.any_thread_in(machine.pid, "D"))
                done = capture(machine.pid, place, "--fast", "--live-gdb", before=ELSEWHERE)
                assert done.end() == 0, done.story
                assert done.outcomes()[layout.GDB_THREADS] == "Skipped"
                assert "state D" in done.story
            with lab.stopped(machine):
                assert "state T" in may_not_attach(machine.pid)


def test_a_capture_that_is_killed_at_any_moment_of_an_attach_leaves_no_thread_stopped(
    vm: Machine, tmp_path: Path
) -> None:
    """gdb dies with the capture, which can leave its stops behind: the guardian takes them back."""
    chance = random.Random(5)  # noqa: S311 - a test that can be repeated
    with namespace() as memory, orphans_come_to_us():
        known = set(children())
        for number in range(KILLS):
            running = capture(vm.pid, tmp_path / str(number), "--fast", "--live-gdb", before=ELSEWHERE, within=memory)
            give_up = time.monotonic() + 30
            while not traced(vm.pid):
                assert running.process.poll() is None, running.process.communicate()
                assert time.monotonic() < give_up, "no gdb was attached"
            time.sleep(chance.random() * 0.2)
            running.send(signal.SIGKILL)
            running.end()
            assert_no_orphan(known, seconds=guardian.TRIES_SECONDS + 3)
            assert_unharmed(vm)


def traced(pid: int) -> bool:
    return guardian.TRACED.search(Path(f"/proc/{pid}/status").read_bytes()) is not None


def test_what_a_debugger_left_stopped_goes_on(vm: Machine) -> None:
    pidfd = os.pidfd_open(vm.pid)
    try:
        assert guardian.heal(vm.pid, pidfd) == guardian.CLEAN
        os.kill(vm.pid, signal.SIGSTOP)
        lab.until("it is stopped", lambda: lab.any_thread_in(vm.pid, "T"))
        assert guardian.heal(vm.pid, pidfd) == guardian.PUT_RIGHT
    finally:
        os.kill(vm.pid, signal.SIGCONT)
        os.close(pidfd)
    assert_unharmed(vm)
