"""Little memory, no CPU, very many threads, descriptors and disks, and a VM that ends while it is looked at."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.drill.machine import Machine
from support import lab
from support.surviving import (
    _every_capture_ends,  # noqa: F401 - a fixture
    assert_no_orphan,
    assert_unharmed,
    busy,
    capture,
    children,
    is_untouched,
    namespace,
    orphans_come_to_us,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

MEMORY = 256 << 20


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with busy() as machine:
        yield machine


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a control group with a limit of memory, of the first version or the second."""
    lab.need_root()
    older, unified = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, file = (older, "memory.limit_in_bytes") if older.is_dir() else (unified, "memory.max")
    group = root / f"autopsy-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        lab.missing("needs a control group of our own")
    try:
        if not (group / file).exists():
            lab.missing("needs the memory controller")
        (group / file).write_text(str(limit))
        yield group
    finally:
        lab.until("the group is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_quarter_of_a_gibibyte_is_enough_for_autopsy(vm: Machine, tmp_path: Path) -> None:
    with memory_cgroup(MEMORY) as group:
        done = capture(
            vm.pid, tmp_path, "--fast", before=("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        )
        assert done.end() == 0, done.story
        assert done.outcomes()["gdb.threads"] == "Collected"
        assert done.outcomes()["freeze"] == "Collected"
    assert_unharmed(vm)


@contextmanager
def hogs(number: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(number):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        yield


def test_four_processes_that_take_every_cpu_cost_no_step(vm: Machine, tmp_path: Path) -> None:
    with hogs(4):
        done = capture(vm.pid, tmp_path, "--fast")
        assert done.end(90) == 0, done.story
    assert set(done.outcomes().values()) == {"Collected"}, done.story
    assert_unharmed(vm)


@contextmanager
def giant(threads: int, disks: int, levels: int) -> Iterator[Machine]:
    """Run a VM of many iothreads (each with descriptors of its own), SCSI disks, and one deep qcow2 chain."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with lab.folder() as place:
            below: list[str] = []
            for level in range(levels):
                image = f"{place}/l{level}.qcow2"
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, image, "8M"], check=True)
                below = ["-F", "qcow2", "-b", image]
            arguments = ["-device", "virtio-scsi-pci,id=scsi0"]
            for number in range(threads):
                arguments += ["-object", f"iothread,id=t{number}"]
            for number in range(disks):
                arguments += ["-blockdev", f"driver=null-co,read-zeroes=on,size=1048576,node-name=n{number}"]
                arguments += [
                    "-device",
                    f"scsi-hd,bus=scsi0.0,drive=n{number},id=d{number},scsi-id={number // 8},lun={number % 8}",
                ]
            arguments += ["-drive", f"if=none,id=disk0,file={image},format=qcow2"]
            arguments += ["-device", "virtio-blk-pci,id=vd0,drive=disk0"]
            with lab.qemu("7.2", *arguments, name="giant") as machine:
                yield machine
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def assert_giant_is_captured(out: Path, threads: int, disks: int, levels: int) -> dict[str, float]:
    """Capture a giant, with and without time for its stop; return seconds and milliseconds of stop."""
    with giant(threads, disks, levels) as machine:
        known = set(children())
        with orphans_come_to_us():
            done = capture(machine.pid, out, "--fast", "--budget", "90")
            assert done.end(120) == 0, done.story
            short = capture(machine.pid, out, "--fast", "--budget", "90", "--max-stop", "1", "--no-bpf")
            assert short.end(120) == 0, short.story
            assert_no_orphan(known)
        lab.until("its threads are as they were", lambda: not is_untouched(machine.pid), seconds=5)
        tasks = len(os.listdir(f"/proc/{machine.pid}/task"))
        assert tasks > threads
        bundle = open_bundle(done.bundle)
        assert bundle.read(layout.evidence(layout.WITNESS, layout.TASKS)).count(b"/wchan (") >= threads
        assert done.outcomes()["freeze"] == "Collected"
        assert done.outcomes()["qmp.query-block"] == "Collected"
        assert done.answer["verdict"]["where"] == "none", done.answer["verdict"]
        assert verify(short.bundle).files
        assert "without a stop" in next(step["why"] for step in short.answer["steps"] if step["name"] == layout.FREEZE)
        return {
            "threads": tasks,
            "descriptors": len(os.listdir(f"/proc/{machine.pid}/fd")),
            "seconds": done.seconds,
            "stop_ms": done.answer["stop_ms"],
            "stop_ms at most 1": short.answer["stop_ms"],
        }


def test_very_many_threads_descriptors_disks_and_levels(tmp_path: Path) -> None:
    """`make soak` takes 2,000 threads, 200 disks and 64 levels."""
    found = assert_giant_is_captured(tmp_path, threads=200, disks=40, levels=16)
    assert found["descriptors"] > 400


@pytest.mark.parametrize("step", [layout.FREEZE, layout.QUERY_STATUS, layout.GDB_THREADS, layout.SECOND_EXPOSURE])
def test_a_vm_that_is_killed_in_the_middle_of_a_step_leaves_a_whole_bundle(step: str, tmp_path: Path) -> None:
    """`make soak` takes every step."""
    with busy("killed") as machine, namespace() as memory:
        done = capture(machine.pid, tmp_path, "--gap", "3", "--budget", "30", within=memory)
        lab.until(f"{step} began", lambda: bool(list(memory.memory.glob(f"*.work/evidence/{step}"))), seconds=30)
        machine.process.send(signal.SIGKILL)
        assert done.end() == 9, done.story
        assert verify(done.bundle).files
        assert done.answer["vm"]["alive"] is False
        assert done.outcomes()["witness"] == "Collected"


def test_a_vm_that_ended_before_is_no_such_vm(tmp_path: Path) -> None:
    with busy("gone") as machine:
        pid = machine.pid
    done = capture(pid, tmp_path, "--fast")
    assert done.end() == 3
    assert list(tmp_path.iterdir()) == []
