"""Our work keeps to half of the CPUs, those that are idle, and gives that up where it would starve by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from autopsy.capture.pace import STARVED, Pace
from autopsy.capture.step import Options
from autopsy.commands import capture as capture_command
from autopsy.commands.capture_options import CaptureOptions
from autopsy.linux.child import collect, in_child, spawn
from autopsy.linux.tasks import behind, cpus
from autopsy.linux.tasks.behind import BackgroundChild, step_back
from support import lab

MAY = frozenset(os.sched_getaffinity(0))
SECOND = os.sysconf("SC_CLK_TCK")


def stat(idle_seconds: Mapping[int, int]) -> str:
    """Return /proc/stat of a host whose CPUs were idle for so long, a third of it waiting for disks."""
    lines = ["cpu  1 2 3 4 5 6 7 8 9 0"]
    for cpu, seconds in idle_seconds.items():
        disks = seconds * SECOND // 3
        lines.append(f"cpu{cpu} 11 12 13 {seconds * SECOND - disks} {disks} 0 0 0 0 0")
    return "\n".join([*lines, "intr 99 " + "0 " * 500, "ctxt 7", ""])


@pytest.fixture
def idle_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Mapping[int, int]], None]:
    """Return what lets CPUs be idle for so many seconds, of two, after they were remembered."""
    place = tmp_path / "stat"
    monkeypatch.setattr(cpus, "STAT", str(place))

    def idle(seconds: Mapping[int, int]) -> None:
        place.write_text(stat(dict.fromkeys(seconds, 1000)))
        cpus.remember()
        monkeypatch.setattr(cpus, "_at_first", (time.monotonic() - 2, time.process_time(), cpus._idle_ticks()))
        place.write_text(stat({cpu: 1000 + passed for cpu, passed in seconds.items()}))

    return idle


def kept(least: int = 1) -> set[int]:
    """Return what a process that keeps to half may use."""

    def work() -> bytes:
        with cpus.kept_to_half(least):
            inside = os.sched_getaffinity(0)
        assert os.sched_getaffinity(0) == MAY
        assert not cpus.keeps_to_half()
        return " ".join(map(str, sorted(inside))).encode()

    return {int(cpu) for cpu in in_child(work, 10).split()}


pytestmark = pytest.mark.skipif(len(MAY) < 2, reason="there is no half of one CPU")


def test_it_keeps_to_the_half_that_is_idle_most(idle_for: Callable[[Mapping[int, int]], None]) -> None:
    idle_for({cpu: 1 + (cpu == max(MAY)) for cpu in MAY})
    half = kept()
    assert len(half) == len(MAY) // 2
    assert max(MAY) in half
    idle_for({cpu: 1 + (cpu == min(MAY)) for cpu in MAY})
    assert min(MAY) in kept()


def test_its_own_work_takes_nothing_from_a_cpu(
    idle_for: Callable[[Mapping[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler has found that one idle: another that is idle for a while has somebody else's work, too."""

    def work() -> bytes:
        os.sched_setaffinity(0, {min(MAY)})
        idle_for({cpu: int(cpu != min(MAY)) for cpu in MAY})
        monkeypatch.setattr(time, "process_time", lambda: cpus._at_first[1] + 1.9)
        return str(cpus._idlest(MAY)[0]).encode()

    assert in_child(work, 10).decode() == str(min(MAY))


def test_it_goes_anywhere_where_no_cpu_is_idle_or_no_half_is_enough(
    idle_for: Callable[[Mapping[int, int]], None],
) -> None:
    idle_for(dict.fromkeys(MAY, 0))
    assert kept() == MAY
    idle_for(dict.fromkeys(MAY, 2))
    assert kept(len(MAY) // 2 + 1) == MAY


@pytest.mark.parametrize("text", ["", "cpu\n", "cpuX a b c d e\n", "cpu0 1\n"], ids=["none", "short", "odd", "cut"])
def test_a_kernel_that_does_not_tell_harms_nothing(
    text: str, idle_for: Callable[[Mapping[int, int]], None], tmp_path: Path
) -> None:
    idle_for({})
    (tmp_path / "stat").write_text(text)
    assert kept() == MAY
    (tmp_path / "stat").unlink()
    assert kept() == MAY


def test_who_may_not_choose_stays_where_he_is(
    idle_for: Callable[[Mapping[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    idle_for(dict.fromkeys(MAY, 2))
    monkeypatch.setattr(os, "sched_setaffinity", refused)
    with cpus.kept_to_half():
        assert not cpus.keeps_to_half()


def test_a_capture_that_starves_where_it_keeps_to_goes_anywhere(idle_for: Callable[[Mapping[int, int]], None]) -> None:
    idle_for(dict.fromkeys(MAY, 2))

    def work() -> bytes:
        with cpus.kept_to_half():
            Pace(ran_ns=1e8, waited_ns=(STARVED / 2 - 1) * 1e8).look()
            slow = os.sched_getaffinity(0)
            Pace(ran_ns=1e9, waited_ns=STARVED * 1e9).look()
            return f"{len(slow)} {len(os.sched_getaffinity(0))}".encode()

    assert in_child(work, 10).decode() == f"{len(MAY) // 2} {len(MAY)}"


def test_what_starves_is_brought_forward_to_any_cpu_whatever_session_it_leads(
    idle_for: Callable[[Mapping[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.need_root()
    monkeypatch.setattr(behind, "LOOK_SECONDS", 0.1)
    cpu = min(MAY)
    idle_for({one: 1 + (one == cpu) for one in MAY})

    def starves() -> bytes:
        ends = time.monotonic() + 30
        while os.sched_getscheduler(0) == os.SCHED_IDLE and time.monotonic() < ends:
            pass
        return f"{os.sched_getscheduler(0)} {len(os.sched_getaffinity(0))}".encode()

    def work() -> bytes:
        os.sched_setaffinity(0, {cpu})
        step_back()
        child = spawn(starves)  # of a session of its own: nobody but its parent starves by it
        return collect(child, 40)

    def waits() -> bytes:
        with cpus.kept_to_half():
            child = spawn(work)
            watched = BackgroundChild(child.pid)
            return collect(child, 60, watched.look) + f" {watched.forward}".encode()

    hog = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
    try:
        told = in_child(waits, 60).decode()
    finally:
        hog.kill()
        hog.wait()
    assert told == f"{os.SCHED_OTHER} {len(MAY)} True"


def test_many_that_share_a_cpu_do_not_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the others of us: all together they have the CPU."""
    monkeypatch.setattr(behind, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(behind, "_with_descendants", lambda _: range(4))
    monkeypatch.setattr(behind, "bring_forward", lambda _: None)
    shares = {True: 100_000_000, False: 1_000_000}
    for enough, ran in shares.items():
        monkeypatch.setattr(behind, "spent", lambda _, ran=ran: (ran, 900_000_000))
        watched = BackgroundChild(1)
        watched._looked -= 1.0
        watched.look()
        assert watched.forward is not enough


@pytest.mark.parametrize("of_many", [False, True])
def test_what_comes_after_the_capture_goes_anywhere_again(
    idle_for: Callable[[Mapping[int, int]], None], monkeypatch: pytest.MonkeyPatch, *, of_many: bool
) -> None:
    """A VM that is started again (`qm start`) is a child of ours, and has our CPUs for as long as it lives."""
    idle_for(dict.fromkeys(MAY, 2))
    counts = []

    def counted(*_: object, **__: object) -> SimpleNamespace:
        counts.append(len(os.sched_getaffinity(0)))
        return SimpleNamespace(end=None)

    for name in ("capture", "kill_captured"):
        monkeypatch.setattr(capture_command, name, counted)
    monkeypatch.setattr(capture_command, "_with_rescued", lambda ended, _: ended)
    monkeypatch.setattr(capture_command, "EndWatch", lambda _: None)
    vm = SimpleNamespace(record=SimpleNamespace(manager="process", name="t"))
    wish = CaptureOptions(name="t", options=Options(), places=(), words=(), then_kill=True, one_of_many=of_many)

    def work() -> bytes:
        capture_command.fulfil_for(vm, wish, SimpleNamespace(tell=print))  # type: ignore[arg-type]  # all that is asked of them
        return repr(counts).encode()

    assert in_child(work, 10).decode() == repr([len(MAY) if of_many else len(MAY) // 2, len(MAY)])


LEAST_AND_CPUS = [((), len(MAY) // 2), (("--fast",), len(MAY) // 2 if len(MAY) > 3 else len(MAY))]


@pytest.mark.live
@pytest.mark.parametrize(("words", "count"), LEAST_AND_CPUS, ids=["unhurried", "--fast"])
def test_a_capture_leaves_half_of_the_cpus_alone(words: tuple[str, ...], count: int, tmp_path: Path) -> None:
    program = (
        "import os, sys; from autopsy.linux.tasks import cpus; cpus.LEAST_FREE = 0.0\n"
        "from autopsy.capture import runner; run = runner.run\n"
        "def told(*given):\n"
        "    print('CPUS', len(os.sched_getaffinity(0)), file=sys.stderr)\n"
        "    return run(*given)\n"
        "runner.run = told\n"
        "from autopsy.__main__ import main; main()"
    )
    with lab.qemu("7.2") as machine:
        command = ("capture", f"pid:{machine.pid}", "--gap", "0.5", *words, "--out", str(tmp_path))
        done = subprocess.run(
            [sys.executable, "-c", program, *command], capture_output=True, text=True, timeout=120, check=True
        )
        assert os.sched_getaffinity(machine.pid) == MAY
    assert f"CPUS {count}\n" in done.stderr
