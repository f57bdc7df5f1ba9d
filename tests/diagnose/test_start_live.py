"""QEMUs that have not come to the start of their VM: told as that, and not started by looking at them."""

from __future__ import annotations

import os
import socket
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
