"""What works on frozen bytes runs behind all others, and is brought forward where it would starve."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autopsy.capture import pace
from autopsy.capture.pace import Pace, in_child_behind
from autopsy.linux.child import collect, in_child, spawn
from autopsy.linux.tasks import autogroup, behind
from autopsy.linux.tasks.behind import BackgroundChild, behind_others, may_return, step_back
from support import lab

TELLS = f"import sys; sys.path[:] = {sys.path}; from autopsy.linux.tasks import behind; print(behind.may_return())"
ORDINARY, IDLE = str(os.SCHED_OTHER), str(os.SCHED_IDLE)


def policy() -> bytes:
    return str(os.sched_getscheduler(0)).encode()


def weight() -> bytes:
    """Return nice of our session's scheduling group, where the kernel has such groups."""
    return autogroup.nice_of() if Path("/proc/self/autogroup").exists() else b"19"


def test_it_is_behind_inside_with_all_that_it_starts_and_as_it_was_afterwards() -> None:
    lab.need_root()

    def work() -> bytes:
        with behind_others(wanted=True):
            inside = policy() + b" " + in_child(policy, 5) + b" " + weight()
        return inside + b" " + policy()

    assert in_child(work, 5).decode().split() == [IDLE, IDLE, "19", ORDINARY]


def test_what_is_started_in_a_group_of_little_weight_starts_nothing_that_weighs_more() -> None:
    lab.need_root()
    if not Path("/proc/self/autogroup").exists():
        lab.missing("needs a kernel with CONFIG_SCHED_AUTOGROUP")

    def work() -> bytes:
        ordinary = in_child(weight, 5)
        autogroup.set_nice(b"10")
        with behind_others(wanted=True):
            inside = in_child(weight, 5)
        return b" ".join((ordinary, inside, in_child(weight, 5)))

    assert in_child(work, 5).decode().split() == [weight().decode(), "19", "10"]


def test_who_is_of_no_group_weighs_what_an_ordinary_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever never led a session, nor came from one that did: the file is there, with nothing in it."""
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO())
    assert autogroup.nice_of() == autogroup.ORDINARY


def test_it_stays_as_it_is_where_that_is_not_wanted() -> None:
    def work() -> bytes:
        with behind_others(wanted=False):
            return policy()

    assert in_child(work, 5).decode() == str(os.sched_getscheduler(0))


def test_nobody_steps_back_who_could_not_come_forward_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "_may_rank", lambda: False)
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    assert not may_return()
    assert not Pace().may_wait()
    monkeypatch.setattr("resource.getrlimit", lambda _: (behind.RETURNS, behind.RETURNS))
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    assert may_return()
    monkeypatch.setattr(os, "getpriority", lambda *_: -5)
    assert not may_return()


def test_a_root_that_may_not_rank_processes_does_not_step_back() -> None:
    """As a unit's that keeps few capabilities, or a container's: it could never come forward again."""
    lab.need_root()
    program = ["prlimit", "--nice=0", "setpriv", "--bounding-set", "-sys_nice", sys.executable, "-c", TELLS]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "False"
    assert may_return()


def test_nobody_steps_back_on_a_host_that_is_not_at_ease() -> None:
    lab.need_root()
    assert Pace().may_wait()
    assert not Pace(ran_ns=1e8, waited_ns=1e8).may_wait()
    assert not Pace(starved_behind=True).may_wait()


def until(what: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return what()


def test_what_starves_behind_others_is_brought_forward_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab.need_root()
    cpu = min(os.sched_getaffinity(0))

    def work() -> bytes:
        os.sched_setaffinity(0, {cpu})
        step_back()
        child = spawn(lambda: b"x" * (1 << 16))
        ends = time.monotonic() + 30
        while policy().decode() == IDLE and time.monotonic() < ends:
            pass
        collect(child, 30)
        return policy()

    monkeypatch.setattr(behind, "LOOK_SECONDS", 0.1)
    hog = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
    try:
        child = spawn(work)
        watched = BackgroundChild(child.pid)
        assert collect(child, 60, watched.look).decode() == ORDINARY
    finally:
        hog.kill()
        hog.wait()
    assert watched.forward


def test_what_worked_behind_and_starved_is_told_to_who_begins_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    now = Pace()
    monkeypatch.setattr(pace, "BackgroundChild", lambda _: _Starved())
    assert in_child_behind(policy, 5, now).decode() == IDLE
    assert now.starved_behind
    assert in_child_behind(policy, 5, now).decode() == str(os.sched_getscheduler(0))


class _Starved:
    forward = True

    def look(self) -> None:
        pass


@pytest.mark.parametrize(
    ("met", "came", "nice"),
    [((30_000_000, 900_000_000), True, 0), ((300_000_000, 400_000_000), False, 13), (None, False, 13)],
    ids=["it starves", "it is only slower", "nobody tells"],
)
def test_a_low_priority_is_given_up_only_where_we_starve_by_it(
    met: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch, nice: int, *, came: bool
) -> None:
    lab.need_root()
    monkeypatch.setattr(behind, "spent", lambda _: met)

    def work() -> bytes:
        os.setpriority(os.PRIO_PROCESS, 0, 13)
        forward = behind.come_forward()
        return f"{forward} {os.getpriority(os.PRIO_PROCESS, 0)}".encode()

    assert in_child(work, 5).decode() == f"{came} {nice}"


def test_a_capture_that_was_started_behind_others_comes_forward_and_is_judged_by_its_pace_since_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab.need_root()
    met = [(30_000_000, 9_000_000_000)]
    monkeypatch.setattr(behind, "spent", lambda _: met[0])

    def work() -> bytes:
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        judged = Pace()
        judged.look()
        told = f"{os.getpriority(os.PRIO_PROCESS, 0)} {os.sched_getscheduler(0)} {judged.slowness:.0f}"
        met[0] = (130_000_000, 9_100_000_000)
        judged.look()
        theirs = in_child(lambda: repr(pace.spent()).encode(), 5).decode()  # of another process, which met it all so
        return f"{told} {judged.slowness:.0f} {theirs}".encode()

    assert in_child(work, 10).decode() == f"0 {ORDINARY} 1 2 (130000000, 9100000000)"


def test_an_ordinary_priority_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lab.need_root()
    monkeypatch.setattr(behind, "spent", lambda _: (1, 1 << 40))

    def work() -> bytes:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        return str(behind.come_forward()).encode()

    assert in_child(work, 5) == b"False"


@pytest.mark.parametrize(("command", "times"), [("capture", 1), ("ps", 0)])
def test_a_capture_comes_forward_before_most_of_the_program_is_loaded(command: str, times: int) -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path}; sys.argv = ['autopsy', {command!r}, '--help']\n"
        "from autopsy.linux.tasks import behind\n"
        "behind.come_forward = lambda: print('forward', 'typer' in sys.modules, file=sys.stderr)\n"
        "from autopsy.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("forward False") == times
    assert "forward True" not in done.stderr
