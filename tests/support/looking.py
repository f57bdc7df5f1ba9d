"""Scenes on real processes for tests of what looks at them from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from autopsy.bundle import proc_stat, sections
from autopsy.bundle.manifest import TargetRecord
from autopsy.capture.step import Deadline, Options, Scene
from autopsy.target.qemu_processes import tell
from autopsy.target.target import Target

R = TypeVar("R")


@contextmanager
def scene(
    pid: int, place: Path, step: str = "witness", *, seconds: float = 20.0, start_ticks: int | None = None
) -> Iterator[Scene]:
    """Make the scene of one step, as the runner would."""
    (place / "evidence" / step).mkdir(parents=True, exist_ok=True)
    started = proc_stat.parse(Path(f"/proc/{pid}/stat").read_bytes()).start_ticks
    assert started is not None
    record = TargetRecord(
        pid=pid,
        name="t",
        manager="process",
        start_ticks=started if start_ticks is None else start_ticks,
        exe="",
        exe_deleted=False,
        build_id="",
        qemu_version="",
    )
    pidfd = os.pidfd_open(pid)
    try:
        yield Scene(Target(record, pidfd, process=tell([pid])[pid]), Options(), place, step, Deadline(seconds))
    finally:
        os.close(pidfd)


def found(at: Scene, file: str) -> dict[str, sections.Section]:
    """Return the sections of a file that a step stored, by name."""
    return {section.name: section for section in sections.parse((at.folder / file).read_bytes())}


def decoded(at: Scene, file: str, kind: type[R]) -> R:
    """Return the records that a step stored."""
    return msgspec.json.decode((at.folder / file).read_bytes(), type=kind)


@contextmanager
def python(code: str) -> Iterator[int]:
    """Run some Python in a process that lives until the end; it must print a line once it is ready, then sleep."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"ready"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
