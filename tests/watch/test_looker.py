"""One process that looks at every VM, and is given up with the one that it hangs at."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from autopsy.watch import coroutine_look, looker
from autopsy.watch.coroutine_look import AnotherProcess, CoroutineLook, WatchedStacks
from autopsy.watch.looker import Looker, LookQuestion, NoLook

HANGS, DIES, GONE, SLOW = 11, 12, 13, 14


class StacksInName(WatchedStacks):
    """Stacks of a process that there is none of: what happens at a look depends on its number."""

    def close(self) -> None:
        pass

    def look(self, size: int) -> CoroutineLook:
        if self.start_ticks == HANGS:
            time.sleep(600)
        if self.start_ticks == SLOW:
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
        if self.start_ticks == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        return CoroutineLook(clear=True, took_ns=size + os.getpid() * 1000)


def in_name(pid: int, _: int) -> WatchedStacks:
    if pid == GONE:
        raise AnotherProcess
    return StacksInName(pid, coroutine_look.open_memory(os.getpid(), "/proc/self"))


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looker]:
    monkeypatch.setattr(coroutine_look, "watched", in_name)
    monkeypatch.setattr(looker, "EACH", 0.2)
    looks = Looker()
    yield looks
    looks.close()


def by(look: object) -> int:
    """Return the number of the process that took a look."""
    assert isinstance(look, CoroutineLook)
    return look.took_ns // 1000


def test_a_process_that_hangs_costs_its_own_look_and_one_child(at_work: Looker) -> None:
    asked = [LookQuestion(pid, 1, 7) for pid in (1, 2, HANGS, 3, 4)]
    looks = at_work.look(asked)
    assert looks[HANGS] == NoLook(hung=True)
    assert by(looks[1]) == by(looks[2]) != by(looks[3]) == by(looks[4])
    with pytest.raises(ProcessLookupError):
        os.kill(by(looks[1]), 0)  # it was ended, and reaped
    again = at_work.look([LookQuestion(1, 1, 8)])
    assert by(again[1]) == by(looks[4])  # the same child goes on


def test_a_look_that_takes_long_because_the_host_is_busy_did_not_hang(at_work: Looker) -> None:
    looks = at_work.look([LookQuestion(pid, 1, 7) for pid in (1, SLOW, 3)])
    assert by(looks[1]) == by(looks[SLOW]) == by(looks[3])


def test_looks_for_which_there_is_no_time_are_missing_and_no_vm_is_taken_for_one_that_hangs(
    at_work: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looker, "MOST_PATIENCE", 0.5)
    assert at_work.look([LookQuestion(pid, 1, 7) for pid in (1, SLOW, 3)]).keys() == {1}
    assert by(at_work.look([LookQuestion(3, 1, 7)])[3])


def test_a_child_that_dies_costs_the_look_that_it_died_of(at_work: Looker) -> None:
    looks = at_work.look([LookQuestion(pid, 1, 7) for pid in (1, DIES, 3)])
    assert looks[DIES] == NoLook(hung=True)
    assert by(looks[1]) != by(looks[3])


def test_a_process_that_has_gone_did_not_hang(at_work: Looker) -> None:
    looks = at_work.look([LookQuestion(GONE, 1, 7), LookQuestion(1, 1, 7)])
    assert looks[GONE] == NoLook(hung=False)
    assert by(looks[1])


def test_where_no_child_can_be_had_every_look_is_missing(at_work: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looker, "MOST_STUCK", 0)
    assert at_work.look([LookQuestion(1, 1, 7)]) == {1: NoLook(hung=True)}


def test_its_child_ends_with_it(at_work: Looker) -> None:
    child = by(at_work.look([LookQuestion(1, 1, 7)])[1])
    at_work.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
