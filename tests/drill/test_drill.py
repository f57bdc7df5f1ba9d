"""The drill's scenarios on this distribution's QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autopsy.drill.machine import ask
from autopsy.drill.process import states
from autopsy.drill.scenarios import SCENARIOS, Scenario, Wedged, find, wedged
from autopsy.drill.site import PREFIX, undisturbed
from autopsy.errors import AutopsyError, UsageError
from support import lab

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("stock")]

SILENT = {"drain", "frozen-fs-native", "stopped"}

HOLD = """
import sys
from autopsy.drill.scenarios import wedged
with wedged(sys.argv[1], keep=sys.argv[2:] == ["keep"]) as it:
    print(it.pid, *it.endings, sep="\\n", flush=True)
    sys.stdin.read()
"""


def ready(name: str) -> Scenario:
    scenario = find(name)
    if "root" in scenario.needs:
        lab.need_root()
    return scenario


def monitor(it: Wedged) -> Path:
    return next(site_folders(it)) / "qmp"


def site_folders(it: Wedged) -> Iterator[Path]:
    for command in it.endings:
        if command.startswith("rm "):
            yield Path(command.split()[-1])


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or states(pid) == {"Z"}


def told_to_die(pid: int) -> bool:
    """Return whether a SIGKILL waits for a thread that cannot take it, or has ended the others."""
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            pending = int(status.read_text().partition("SigPnd:")[2].split()[0], 16)
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has ended meanwhile
        if pending & 1 << (signal.SIGKILL - 1):
            return True
    return "Z" in states(pid)


@pytest.mark.parametrize("name", [each.name for each in SCENARIOS if each.name != "busy"])
def test_every_scenario_is_what_it_says_and_leaves_nothing(name: str) -> None:
    ready(name)
    with wedged(name) as it:
        folder = next(site_folders(it))
        if name in SILENT:
            with pytest.raises(TimeoutError):
                ask(monitor(it), "query-status", {}, within=0.3)
        else:
            status = ask(monitor(it), "query-status", {}, within=5)["status"]
            assert status == ("paused" if name == "paused" else "running")
        match name:
            case "stopped":
                assert states(it.pid) == {"T"}
            case "frozen-fs":
                assert "D" in states(it.pid)
            case "frozen-fs-native":
                assert Path(f"/proc/{it.pid}/syscall").read_text().startswith("209 ")  # io_submit, the main thread
            case "fuse-stuck":
                assert lab.waits_in(it.pid, "request_wait_answer")
            case _:
                assert not states(it.pid) & {"D", "T"}
    assert gone(it.pid)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("name", ["throttle", "throttle-node"])
def test_throttled_writes_stay_in_flight(name: str) -> None:
    with wedged(name) as it:
        disks = ask(monitor(it), "query-blockstats", {}, within=5)
        assert [each["stats"]["wr_operations"] for each in disks if "qdev" in each] == [0]


def test_a_busy_guest_completes_writes() -> None:
    with wedged("busy") as it:

        def writes() -> int:
            disks = ask(monitor(it), "query-blockstats", {}, within=5)
            return sum(each["stats"]["wr_operations"] for each in disks)

        before = writes()
        lab.until("the guest wrote more", lambda: writes() > before)


@contextmanager
def held(name: str, *keep: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    ready(name)
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, name, *keep],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=root,
    )
    with child:
        try:
            assert child.stdout is not None
            yield child, int(child.stdout.readline())
        finally:
            child.kill()


def left_below_tmp() -> list[str]:
    return [line for line in lab.leftovers(Path(os.environ["TMPDIR"])) if PREFIX in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_drill_that_is_interrupted_cleans_up(number: signal.Signals) -> None:
    name = "frozen-fs-native" if os.geteuid() == 0 else "throttle"
    with held(name) as (child, pid):
        child.send_signal(number)
        assert child.wait(20) != 0
        assert gone(pid)
        assert left_below_tmp() == []


@pytest.mark.parametrize("name", ["nbd-silent", "frozen-fs"])
def test_even_a_drill_that_is_killed_leaves_nothing(name: str) -> None:
    with held(name) as (child, pid):
        child.kill()
        child.wait(20)
        lab.until("QEMU has gone", lambda: gone(pid))
        lab.until("nothing is left", lambda: left_below_tmp() == [])


def ended_well(words: tuple[str, ...]) -> bool:
    return subprocess.run(words, check=False).returncode == 0


@pytest.mark.parametrize("name", ["nbd-silent", "fuse-stuck", "frozen-fs"])
def test_what_is_kept_ends_by_the_commands_that_are_told(name: str) -> None:
    with held(name, "keep") as (child, pid):
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        endings = child.stdout.read().decode().splitlines()
    try:
        assert not gone(pid)
        assert left_below_tmp() != []
    finally:
        for line in endings:
            lab.until(f"`{line}` worked", lambda words=("/bin/sh", "-c", line): ended_well(words))
    lab.until("QEMU has gone", lambda: gone(pid))
    assert left_below_tmp() == []


def test_the_command_tells_of_the_kill_and_of_the_verdict(tmp_path: Path) -> None:
    ready("throttle")
    words = [sys.executable, "-m", "autopsy", "drill", "throttle", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert "\nkill: SIGKILL; gone after" in done.stderr
    assert "the verdict says so" in done.stderr
    assert done.stdout.startswith("STUCK    8 requests")


def test_a_kept_drill_that_goes_wrong_is_taken_down() -> None:
    with pytest.raises(ZeroDivisionError), wedged("stopped", keep=True) as it:
        raise ZeroDivisionError
    assert gone(it.pid)


@pytest.mark.parametrize("name", [each.name for each in SCENARIOS if each.effect or each.needs or each.name in SILENT])
def test_a_wedged_qemu_dies_at_once_unless_its_scenario_says_otherwise(name: str) -> None:
    ready(name)
    with wedged(name) as it:
        os.kill(it.pid, signal.SIGKILL)
        if it.scenario.survives_kill:
            lab.until("the kernel has the signal", lambda: told_to_die(it.pid))
            assert not gone(it.pid)
        else:
            lab.until("QEMU has gone", lambda: gone(it.pid))


def test_no_qemu_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOPSY_QEMU", raising=False)
    monkeypatch.setattr("autopsy.drill.machine.BINARIES", ("no-such-qemu",))
    with pytest.raises(AutopsyError, match="not found") as refused, wedged("stopped"):
        pass
    assert "apt install qemu-system-x86" in refused.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scenario_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no such drill"), wedged("no-such-drill"):
        pass


def test_a_signal_that_comes_at_a_bad_moment_comes_a_moment_later() -> None:
    order = []

    def interrupted() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            order.append("the block was finished")
        order.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert order == ["the block was finished"]


def test_scenarios_have_names_of_their_own() -> None:
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
