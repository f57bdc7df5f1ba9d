"""QEMUs that have not come to the start of their VM: told as that, and not started by looking at them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.capture.qmp import first_client, session
from autopsy.capture.step import Skipped
from autopsy.drill.process import start
from autopsy.drill.site import site
from support import lab
from support.asking import Capture, a_monitor
from support.verdicts import captured
from support.wedged import starts
from support.wedged.wedges import Stuck

SetUp = Callable[[lab.Build], AbstractContextManager[Stuck]]
pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.parametrize("label", ["7.2", "10.0.2"])
def test_a_qemu_that_waits_for_a_chardevs_client_has_never_started(label: str, tmp_path: Path) -> None:
    with starts.awaits_client(lab.build(label)) as vm:
        verdict = captured(vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == ("vm-state", "vm-awaits-client"), verdict
        headline = verdict.answer["verdict"]["headline"]
        assert headline.startswith("This QEMU has never started: it waits for the first client of ")
        assert "serial.sock" in headline


@pytest.mark.parametrize("label", ["7.2", "10.0.2"])
def test_the_same_qemu_that_waits_for_nobody_is_healthy(label: str, tmp_path: Path) -> None:
    with starts.awaits_client(lab.build(label), wait="off") as vm:
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict


def test_a_monitor_whose_first_client_starts_the_vm_is_not_connected_to(short: Path, tmp_path: Path) -> None:
    monitor = short / "qmp.sock"
    words = (
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-m",
        "16",
        "-qmp",
        f"unix:{monitor},server=on,wait=on",
    )
    with site() as there:
        vm = start(there, [lab.build("7.2").binary, *words], log="qemu.log")
        vm.wait_until("it listens", monitor.exists)
        before = threads(vm.pid)
        capture = Capture(tmp_path, vm.pid, a_monitor(monitor))
        lab.until("it waits", lambda: waits(capture, monitor))
        outcome = capture.query_status()
        why = f"QEMU waits on {monitor} for its first client: whoever connects would start the VM"
        assert outcome == Skipped(f"no QMP monitor that can be asked: {why}")
        assert [each.outcome for each in session.earlier(capture.scene("later"), layout.QUERY_STATUS)] == ["skipped"]
        assert threads(vm.pid) == before
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(monitor))
            lab.until("a client starts the VM", lambda: threads(vm.pid) > before)
            capture.witness()
            assert first_client.awaited(capture.scene("later")) == frozenset()


def waits(capture: Capture, monitor: Path) -> bool:
    capture.witness()
    return first_client.awaited(capture.scene("later")) == {str(monitor)}


@pytest.mark.parametrize(
    ("label", "set_up", "where", "signature"),
    [
        ("7.2", starts.on_frozen, "host", "host-fs-frozen"),
        ("10.0.2", starts.on_frozen, "host", "host-fs-frozen"),
        ("11", starts.on_frozen, "host", "host-fs-frozen"),
        ("10.0.2", starts.on_fuse, "peer", "fuse-daemon-silent"),
        ("7.2", starts.on_nbd, "peer", "nbd-reconnecting"),
    ],
)
def test_a_qemu_whose_image_lies_on_stuck_storage_has_never_started(
    label: str, set_up: SetUp, where: str, signature: str, tmp_path: Path
) -> None:
    with set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == (where, signature), verdict
        assert verdict.answer["verdict"]["headline"].startswith("This QEMU has never started: 1 "), verdict
        assert all(name in f"{verdict.objects} {verdict!r}" for name in it.names), verdict


@pytest.mark.parametrize(
    ("label", "set_up"),
    [("7.2", partial(starts.on_frozen, freezes=False)), ("10.0.2", partial(starts.on_fuse, stops=False))],
)
def test_the_same_qemu_on_storage_that_answers_has_started(label: str, set_up: SetUp, tmp_path: Path) -> None:
    with set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path / "prelaunch")
        assert (verdict.where, verdict.signature) == ("vm-state", "vm-prelaunch"), verdict
        assert "This QEMU has never started" not in verdict.answer["verdict"]["headline"]
        it.vm.qmp("cont")
        verdict = captured(it.vm.pid, tmp_path / "running")
        assert verdict.where == "none", verdict
