"""systemd hears of the watch what it needs: ready, alive while rounds end, and what it sees."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopsy.watch.model import StallKind
from autopsy.watch.notify import MOST_STATUS, ServiceNotifier
from support import lab
from support.watching import rounds

TWO = rounds.of(rounds.vm("a"), rounds.vm("b", stalled=StallKind.DISK))
UNIT = lab.HOUSE / "packaging" / "systemd" / "autopsy-watch.service"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(0)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def notifier(manager: socket.socket, clock: list[float], **given: str) -> ServiceNotifier:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), **given}
    return ServiceNotifier(environment, lambda: clock[0])


def test_the_watchdog_is_pinged_by_rounds_that_end_a_third_of_its_time_apart(manager: socket.socket) -> None:
    clock = [100.0]
    ours = notifier(manager, clock, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    pings = []
    for clock[0] in (100.0, 102.0, 104.0, 110.0, 112.0, 120.5):
        ours.round_ended(TWO)
        said = heard(manager)
        if "WATCHDOG=1" in said:
            pings.append(clock[0])
        assert said[:2] == (["READY=1", "STATUS=2 VMs; stalled: b"] if clock[0] == 100.0 else said[:2])
    assert pings == [100.0, 110.0, 120.5]
    ours.stopping()
    assert heard(manager) == ["STOPPING=1"]


def test_without_a_round_that_ends_nothing_pings(manager: socket.socket) -> None:
    clock = [0.0]
    ours = notifier(manager, clock, WATCHDOG_USEC="3000000")
    clock[0] = 1000.0
    assert heard(manager) == []
    ours.round_ended(rounds.of())
    assert heard(manager) == ["READY=1", "STATUS=0 VMs, none stalled", "WATCHDOG=1"]


@pytest.mark.parametrize("given", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_a_watchdog_of_another_process_or_none_is_not_pinged(manager: socket.socket, given: dict[str, str]) -> None:
    notifier(manager, [0.0], **given).round_ended(rounds.of())
    assert "WATCHDOG=1" not in heard(manager)


def test_a_vms_name_in_the_status_is_no_message_of_its_own(manager: socket.socket) -> None:
    ours = notifier(manager, [0.0])
    hostile = rounds.of(rounds.vm("a\nMAINPID=1\nb" + "x" * 100_000, stalled=StallKind.DISK))
    ours.round_ended(hostile)
    ready, told = heard(manager)
    assert ready == "READY=1"
    assert "\n" not in told
    assert len(told) < MOST_STATUS + 20
    ours.round_ended(hostile)
    assert heard(manager) == []  # it says nothing twice


def test_where_nobody_listens_any_more_or_never_did_nothing_happens(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "absent"), "@autopsy-test-absent", str(tmp_path / ("x" * 200))):
        ServiceNotifier({"NOTIFY_SOCKET": address}).round_ended(rounds.of())


def test_a_manager_that_takes_nothing_is_not_waited_for(manager: socket.socket) -> None:
    ours = notifier(manager, [0.0])
    for number in range(2000):
        ours.round_ended(rounds.of(rounds.vm(str(number), stalled=StallKind.DISK)))


def test_systemd_rates_the_units_exposure_below_3() -> None:
    if shutil.which("systemd-analyze") is None:
        lab.missing("systemd-analyze is not here: apt install systemd")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", UNIT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_keeps_two_capabilities_and_hides_no_process_from_itself() -> None:
    said = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    assert said["CapabilityBoundingSet"].split() == ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]
    assert (said["Type"], said["WatchdogSec"], said["RuntimeDirectory"]) == ("notify", "30", "autopsy/watch")
    assert not {"ProtectProc", "PrivateUsers", "PrivatePIDs", "PrivateNetwork", "ProcSubset"} & said.keys()


def test_a_capture_unit_starts_where_a_home_folder_hangs() -> None:
    """To name /home to systemd is to have it look there before it starts anything: a hung mount costs the capture."""
    for name in ("autopsy@.service", "autopsy-kill@.service"):
        said = (UNIT.parent / name).read_text()
        assert not re.search(r"^ProtectHome=", said, re.MULTILINE)
        assert not re.search(r"^(ReadOnly|ReadWrite|Inaccessible)Paths=", said, re.MULTILINE)
