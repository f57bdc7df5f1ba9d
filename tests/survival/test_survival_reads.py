"""Whatever is read never answers: the step says so, the rest is there, the capture ends in time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.bundle.verify import verify
from autopsy.drill.machine import Machine
from support import lab
from support.surviving import (
    _every_capture_ends,  # noqa: F401 - a fixture
    assert_no_orphan,
    assert_unharmed,
    at_leisure,
    capture,
    children,
    namespace,
    orphans_come_to_us,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

PROGRAMS = (
    "gdb",
    "ss",
    "dmesg",
    "journalctl",
    "virsh",
    "dmsetup",
    "rbd",
    "qm",
    "pvesh",
    "systemctl",
    "multipath",
    "zpool",
)
GRACE = 8.0  # beyond the budget: the seal, the report beside it, Python's own start and end on a loaded machine


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    with at_leisure() as machine:
        yield machine


def stand_ins(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    "script",
    ["exec sleep 86400", "trap '' INT TERM HUP; sleep 86400 & sleep 86400", "yes 2>&1"],
    ids=["sleeps", "ignores signals and forks", "talks for ever"],
)
def test_programs_that_never_end_cost_their_own_answers_only(script: str, vm: Machine, tmp_path: Path) -> None:
    known = set(children())
    with orphans_come_to_us():
        done = capture(vm.pid, tmp_path, "--fast", "--budget", "10", environment=stand_ins(tmp_path / "bin", script))
        assert done.end() == 0, done.story
        assert done.seconds < 10 + GRACE
        assert_no_orphan(known)
    outcomes = done.outcomes()
    assert outcomes["gdb.threads"] in {"TimedOut", "Failed", "Collected"}
    for step in ("witness", "freeze", "qmp.query-status", "qmp.query-block", "proc.stacks"):
        assert outcomes[step] == "Collected", done.story
    assert verify(done.bundle).files
    assert_unharmed(vm)


def test_files_that_never_answer_cost_their_own_sections_only(vm: Machine, tmp_path: Path) -> None:
    """A FUSE file whose daemon is stopped lies over files of /proc and /sys, of the process and of the host."""
    hung = [
        *(f"/proc/{vm.pid}/{file}" for file in ("smaps", "maps", "numa_maps", "cgroup", f"task/{vm.pid}/stack")),
        *("/proc/pressure/io", "/proc/diskstats", "/proc/net/unix", "/sys/kernel/mm/ksm/run", "/proc/locks"),
    ]
    there = [path for path in hung if os.path.exists(path)]
    with lab.folder() as place:
        image = lab.disk(place / "image", mebibytes=1)
        with lab.fuse(image) as served, orphans_come_to_us():
            binds = [f"mount --bind {served.file} {path}" for path in there]
            with namespace(*binds) as memory, lab.stopped(served.process):
                known = set(children())
                done = capture(vm.pid, tmp_path, "--fast", "--budget", "30", within=memory)
                assert done.end() == 0, done.story
                assert done.seconds < 30 + GRACE
                told = str(open_bundle(done.bundle).manifest.steps) + done.story
                unnamed = {pid: name for pid, name in children().items() if pid not in known and str(pid) not in told}
                assert unnamed == {}, [Path(f"/proc/{pid}/wchan").read_text() for pid in unnamed]
            assert_no_orphan(known)
    outcomes = done.outcomes()
    assert outcomes["witness"] == "TimedOut"
    assert outcomes["qmp.query-status"] == "Collected"
    assert outcomes["proc.fds"] in {"Collected", "TimedOut"}
    tasks = open_bundle(done.bundle).read("evidence/witness/tasks.txt")
    assert b"did not answer" in tasks
    assert f"task/{vm.pid}/stat ".encode() in tasks
    assert_unharmed(vm)


def test_a_monitor_that_is_stopped_with_its_vm_costs_only_its_own_steps(tmp_path: Path) -> None:
    with at_leisure("stopped") as machine, lab.stopped(machine):
        done = capture(machine.pid, tmp_path, "--fast", "--budget", "20")
        assert done.end() == 0, done.story
        assert done.seconds < 20 + GRACE
        assert done.answer["verdict"]["where"] == "process"
        assert subprocess.run(["grep", "-c", "^State:.T", f"/proc/{machine.pid}/status"], check=True).returncode == 0
