"""A monitor that libvirtd holds, asked through a stand-in for virsh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.manifest import Domain
from autopsy.capture.qmp import commands
from autopsy.capture.step import Collected, Outcome, Skipped, TimedOut
from support import lab
from support.asking import (
    DISKS,
    Capture,
    a_monitor,
    capture_of,
    impatient,
    other_client_of,
)

# libvirt, with a stand-in for virsh on PATH: it asks a real QEMU's monitor as libvirtd would.

WEB1 = Domain(connection="qemu:///system", word="web1")

STAND_IN = """#!/usr/bin/env -S python3 -IS
import json, socket, sys, time
MODE, MONITOR = {settings}
assert sys.argv[1:4] == ["-q", "-c", "qemu:///system"], sys.argv
assert "--domain=web1" in sys.argv
if "domcontrol" in sys.argv:
    sys.exit(print("occupied (31.4s)" if MODE == "occupied" else "ok"))
if MODE == "stuck":
    sys.exit("error: Timed out during operation: cannot acquire state change lock (held by monitor=x)")
if MODE == "silent":
    time.sleep(600)
command = next(word for word in sys.argv if word.startswith("--cmd="))[6:]
with socket.socket(socket.AF_UNIX) as s:
    s.connect(MONITOR)
    stream = s.makefile("rwb")
    stream.readline()
    for each in ('{{"execute": "qmp_capabilities"}}', command):
        stream.write(each.encode() + b"\\n")
        stream.flush()
        while "event" in (reply := json.loads(stream.readline())):
            pass
print(json.dumps(reply))
"""


@contextmanager
def capture_through_virsh(place: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    with lab.qemu("7.2", *DISKS) as machine, other_client_of(machine.monitor):  # as libvirtd holds it
        virsh = place / "virsh"
        virsh.write_text(STAND_IN.format(settings=(mode, str(machine.control))))
        virsh.chmod(0o755)
        held = a_monitor(machine.monitor)
        with capture_of(place, machine.pid, held, manager="libvirt", name="web1", domain=WEB1) as capture:
            yield capture


@pytest.mark.live
def test_a_libvirt_domain_is_asked_through_virsh_stand_in(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    with capture_through_virsh(short, "ok", monkeypatch) as capture:
        capture.witness()
        assert isinstance(capture.query_status(seconds=30), Collected)
        assert isinstance(capture.query_block(seconds=30), Collected)
        greeting = capture.of(commands.GREETING)
        assert greeting.outcome == "greeted"
        assert "tainted (custom-monitor)" in greeting.why
        assert capture.of(commands.CAPABILITIES).outcome == "skipped"
        assert capture.of("query-status").answer["running"] is True
        told = (*capture.told(), *capture.told(layout.QUERY_BLOCK))  # a QEMU before 9 is asked for them in the second
        assert [each.outcome for each in told if each.question == "query-blockstats"][-1] == "answered"


@pytest.mark.live
@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        ("occupied", Skipped("the monitor is held by libvirtd (occupied (31.4s))")),
        (
            "stuck",
            Skipped(
                "query-status: virsh: error: Timed out during operation: "
                "cannot acquire state change lock (held by monitor=x)"
            ),
        ),
        ("silent", TimedOut("query-status: no answer in 3.0 s")),
    ],
)
def test_a_stuck_libvirtd_is_told_and_not_waited_for_with_virsh_stand_in(
    short: Path, monkeypatch: pytest.MonkeyPatch, mode: str, outcome: Outcome
) -> None:
    lab.need_root()
    impatient(monkeypatch, 3.0)
    with capture_through_virsh(short, mode, monkeypatch) as capture:
        assert capture.query_status() == outcome
        assert isinstance(capture.query_block(), Skipped)
