"""A capture of one process as far as its monitor goes, for tests of what asks it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.manifest import MonitorSocket, TargetRecord
from autopsy.bundle.records import QmpExchange
from autopsy.capture.proc import witness
from autopsy.capture.qmp import connect, session
from autopsy.capture.qmp import step as qmp
from autopsy.capture.step import Collected, Deadline, Options, Outcome, Scene
from autopsy.target.target import Target
from support import fake_qmp, lab

DISKS = (
    *("-object", "iothread,id=io0"),
    *("-object", "throttle-group,id=tg0,x-iops-total=100"),
    *("-blockdev", "driver=null-co,node-name=n0"),
    *("-blockdev", "driver=throttle,node-name=t0,file=n0,throttle-group=tg0"),
    *("-device", "virtio-blk-pci,drive=t0,id=vd0,iothread=io0"),
    *("-drive", "if=none,id=d0,driver=null-co,throttling.iops-total=50"),
    *("-device", "virtio-scsi-pci,id=s0"),
    *("-device", "scsi-hd,drive=d0,bus=s0.0"),
)


def a_monitor(path: Path, *, reachable: bool = True) -> MonitorSocket:
    return MonitorSocket(protocol="qmp", transport="unix", address=str(path), reachable=str(path) if reachable else "")


class Capture:
    """One process, and a folder that the steps fill as a capture would."""

    def __init__(
        self, folder: Path, pid: int, *monitors: MonitorSocket, manager: Any = "process", name: str = "t", **more: Any
    ) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.folder = folder
        record = TargetRecord(
            pid=pid,
            name=name,
            manager=manager,
            start_ticks=int(fields[19]),
            exe="",
            exe_deleted=False,
            build_id="",
            qemu_version="",
            monitors=monitors,
            **more,
        )
        self.target = Target(record, os.pidfd_open(pid))

    def scene(self, step: str, *, seconds: float = 8.0, **options: Any) -> Scene:
        scene = Scene(self.target, Options(**options), self.folder, step, Deadline(seconds))
        scene.folder.mkdir(parents=True, exist_ok=True)
        return scene

    def run(self, step: str, collect: Callable[[Scene], Outcome], **more: Any) -> Outcome:
        return collect(self.scene(step, **more))

    def witness(self) -> None:
        assert isinstance(self.run(layout.WITNESS, witness.witness_threads), Collected)

    def query_status(self, **more: Any) -> Outcome:
        return self.run(layout.QUERY_STATUS, qmp.query_status, **more)

    def query_block(self, **more: Any) -> Outcome:
        return self.run(layout.QUERY_BLOCK, qmp.query_block, **more)

    def throttle_groups(self, **more: Any) -> Outcome:
        return self.run(layout.THROTTLE_GROUPS, qmp.throttle_groups, **more)

    def ask_again(self, **more: Any) -> Outcome:
        return self.run(layout.SECOND_EXPOSURE, qmp.ask_again, **more)

    def told(self, step: str = layout.QUERY_STATUS) -> list[QmpExchange]:
        path = self.folder / "evidence" / step / layout.QMP
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.json.decode(line, type=QmpExchange) for line in lines]

    def of(self, question: str, step: str = layout.QUERY_STATUS) -> QmpExchange:
        return next(each for each in self.told(step) if each.question == question)

    def outcomes(self, step: str = layout.QUERY_STATUS) -> dict[str, str]:
        return {each.question: each.outcome for each in self.told(step)}


@contextmanager
def capture_of(folder: Path, pid: int, *monitors: MonitorSocket, **more: Any) -> Iterator[Capture]:
    capture = Capture(folder, pid, *monitors, **more)
    try:
        yield capture
    finally:
        os.close(capture.target.pidfd)


@contextmanager
def capture_of_fake(place: Path, script: fake_qmp.Script) -> Iterator[Capture]:
    path = place / "fake"
    with fake_qmp.server(path, script), capture_of(place, os.getpid(), a_monitor(path)) as capture:
        yield capture


@contextmanager
def capture_of_qemu(place: Path, which: lab.Build | str, *arguments: str) -> Iterator[tuple[Capture, lab.Machine]]:
    with lab.qemu(which, *arguments) as machine, capture_of(place, machine.pid, a_monitor(machine.monitor)) as capture:
        yield capture, machine


@contextmanager
def client_of(path: Path) -> Iterator[socket.socket]:
    """Take a monitor's one place."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        assert b"QMP" in connection.recv(4096)
        yield connection


@contextmanager
def other_client_of(path: Path, seconds: float = 60) -> Iterator[int]:
    """Let another process take the monitor's one place for a while, and return its pid."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        with client_of(path):
            os.write(theirs, b"x")
            time.sleep(seconds)
        os._exit(0)
    try:
        os.read(ours, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(theirs)


def patient(monkeypatch: pytest.MonkeyPatch, seconds: float = 60.0) -> None:
    """Give answers more time, where whoever answers is a program that a busy machine starts slowly."""
    impatient(monkeypatch, seconds)


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    """Give answers less time, so that the tests of silence are quick."""
    monkeypatch.setattr(session, "QUESTION_SECONDS", seconds)
    monkeypatch.setattr(connect, "GREETING_SECONDS", seconds)
    monkeypatch.setattr(connect, "SLOT_SECONDS", seconds)
