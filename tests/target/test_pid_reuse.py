"""A number that comes to mean another process leads nobody to that one: it is not read, not stopped, not killed."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autopsy.bundle.seal import Sealed
from autopsy.capture.freeze import step as freeze
from autopsy.capture.freeze.snapshot import Phases, ProcessGone, take_snapshot, tasks
from autopsy.capture.freeze.tracer import hold
from autopsy.capture.plan import PLAN
from autopsy.capture.reading import procfs
from autopsy.capture.step import Deadline, Failed, Step
from autopsy.kill.kill import kill
from autopsy.linux.mappings import parse_maps
from support import lab, looking

SYS_CLONE3 = 435
CLOCK_NANOSLEEP = 230
MARK = "the-stranger"
GAP = 0.2

Swap = Callable[[], None]


def _be_born_as(pid: int, *words: str) -> None:
    """Start a child of that very number (clone3(2), set_tid).

    Raises:
        OSError: EEXIST where somebody else was quicker.
    """
    wanted = ctypes.c_int(pid)
    fields = (0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    arguments = ctypes.create_string_buffer(struct.pack("<11Q", *fields))
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.syscall(SYS_CLONE3, arguments, len(arguments.raw) - 1)
    if made == 0:
        try:
            os.execve(words[0], words, {"NAME": MARK})  # noqa: S606 - nothing else may happen in this child
        finally:
            os._exit(127)
    if made != pid:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def doomed(place: Path) -> Iterator[tuple[int, Swap]]:
    """Run a process; `swap` ends it and starts another one with its number, a copy of sleep(1) with a name to find."""
    stranger = place / MARK
    shutil.copy("/bin/sleep", stranger)
    first = subprocess.Popen(
        [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(300)"], stdout=subprocess.PIPE
    )
    reborn: list[int] = []

    def swap() -> None:
        first.kill()
        first.wait()
        _be_born_as(first.pid, str(stranger), "300")
        reborn.append(first.pid)
        lab.until("it sleeps", lambda: Path(f"/proc/{first.pid}/syscall").read_text().startswith(f"{CLOCK_NANOSLEEP} "))

    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        yield first.pid, swap
    finally:
        for pid in reborn:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        first.kill()
        first.wait()
        if first.stdout is not None:
            first.stdout.close()


def _interruptions(pid: int) -> int:
    """Return how often a process that only sleeps has left the CPU: to be stopped would add to it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)


def _harmed(pid: int, before: int) -> bool:
    return _interruptions(pid) != before or b"TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_bytes()


@pytest.mark.parametrize("step", PLAN, ids=lambda step: step.name)
def test_no_step_takes_another_process_for_the_vm(step: Step, tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    with doomed(tmp_path) as (pid, swap), looking.scene(pid, staging, step.name) as at:
        swap()
        before = _interruptions(pid)
        step.collect(replace(at, options=replace(at.options, gap=GAP)))
        assert not _harmed(pid, before)
        stored = [each for each in staging.rglob("*") if each.is_file()]
        assert [each for each in stored if MARK.encode() in each.read_bytes()] == []


def test_a_freeze_under_way_does_not_turn_to_another_process(tmp_path: Path) -> None:
    with doomed(tmp_path) as (pid, swap), looking.scene(pid, tmp_path / "staging", "freeze") as at:

        def swapped_under_way() -> None:
            with freeze._opened(at) as process:
                known = tasks(process.pid, process.path)
                mappings = parse_maps(Path(process.path, "maps").read_bytes())
                swap()
                before = _interruptions(pid)
                with pytest.raises((ProcessGone, ProcessLookupError)):
                    take_snapshot(process, known, Phases(), ram_sizes=(), max_stop=0.05, deadline=Deadline(5))
                with pytest.raises(OSError, match="No such"):
                    hold(process, mappings, 0.05)
                assert not _harmed(pid, before)

        with pytest.raises(procfs.ProcessEnded):  # it is looked at once more at the end
            swapped_under_way()
        outcome = freeze.expose(at)
        assert isinstance(outcome, Failed)
        assert "ended" in outcome.why


def test_an_open_folder_leads_to_nobody_else(tmp_path: Path) -> None:
    with (
        doomed(tmp_path) as (pid, swap),
        looking.scene(pid, tmp_path / "staging") as at,
        procfs.held(at.target) as held,
    ):
        assert Path(held.path, "exe").resolve() == Path(sys.executable).resolve()
        swap()
        for file in ("exe", "fd/0", "root/", "cmdline", "task", f"task/{pid}/stat"):
            assert not os.path.exists(f"{held.path}/{file}")
        with pytest.raises(procfs.ProcessEnded):
            held.numbers("task")


def test_a_kill_ends_nobody_else(tmp_path: Path) -> None:
    bundle = tmp_path / "autopsy-t-20240101T000000Z.tar.zst"
    bundle.write_bytes(b"")
    with doomed(tmp_path) as (pid, swap), looking.scene(pid, tmp_path / "staging") as at:
        swap()
        killed = kill(at.target, Sealed(bundle, "", 0))
        assert killed.gone
        assert "by itself" in killed.how
        assert MARK in os.readlink(f"/proc/{pid}/exe")
