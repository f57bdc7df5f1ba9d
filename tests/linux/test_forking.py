"""The one way in which a child of ours is forked, heard and ended."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from autopsy.linux.tasks.forking import Overdue, PipeEnds, end, ended, fork, fork_orphan, has_ended, receive, send


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def no_room(*_: object) -> int:
    raise OSError(errno.EAGAIN, "no room")


def sleep_on(_: PipeEnds) -> int:
    time.sleep(600)
    return 0


def repeat(ends: PipeEnds) -> int:
    send(ends.tells, os.read(ends.hears, 5))
    return 7


def test_a_child_hears_and_answers_and_its_exit_code_is_told_once() -> None:
    child = fork(repeat)
    send(child.questions, b"hello")
    assert receive(child.answers, 5, time.monotonic() + 10) == b"hello"
    assert ended(child.pidfd, 10) == 7
    with pytest.raises(ChildProcessError):
        ended(child.pidfd, 10)
    assert end(child) is None


def test_what_ended_by_a_signal_has_a_negative_exit_code() -> None:
    child = fork(lambda _: os.kill(os.getpid(), signal.SIGTERM) or 0)
    assert ended(child.pidfd, 10) == -signal.SIGTERM
    end(child)


def test_what_does_not_come_in_time_is_overdue_and_what_never_will_is_the_end() -> None:
    silent = fork(sleep_on)
    with pytest.raises(Overdue):
        receive(silent.answers, 1, time.monotonic() + 0.05)
    assert ended(silent.pidfd, 0) is None
    assert end(silent) is None
    gone = fork(lambda _: 0)
    with pytest.raises(EOFError):
        receive(gone.answers, 1, time.monotonic() + 10)
    end(gone)


@pytest.mark.parametrize("what_fails", ["fork", "pidfd_open"])
@pytest.mark.parametrize("own_namespace", [False, True])
def test_where_no_child_can_be_had_nothing_is_left_open_or_running(
    what_fails: str, *, own_namespace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, namespace = descriptors(), os.readlink("/proc/self/ns/pid_for_children")
    made: list[int] = []

    def remembered(real: Callable[[], int] = os.fork) -> int:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(os, "fork", remembered)
    monkeypatch.setattr(os, what_fails, no_room)
    with pytest.raises(OSError, match="no room"):
        fork(sleep_on, own_namespace=own_namespace)
    monkeypatch.undo()
    assert descriptors() == before
    assert os.readlink("/proc/self/ns/pid_for_children") == namespace
    for pid in made:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_all_that_a_child_of_its_own_session_started_ends_with_it() -> None:
    def live(ends: PipeEnds) -> int:
        started = os.fork()
        if started == 0:
            os.setpgid(0, 0)  # a group of its own
            time.sleep(600)
        send(ends.tells, started.to_bytes(4, "little"))
        return sleep_on(ends)

    child = fork(live, own_session=True)
    started = os.pidfd_open(int.from_bytes(receive(child.answers, 4, time.monotonic() + 10), "little"))
    assert end(child) is None
    with open(f"/proc/self/fdinfo/{started}", encoding="ascii") as stream:
        give_up = time.monotonic() + 10
        while "Pid:\t-1\n" not in stream.read():
            assert time.monotonic() < give_up
            stream.seek(0)
    os.close(started)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return int(stream.read().rpartition(b")")[2].split()[1])


def test_an_orphan_is_no_descendant_of_ours_and_is_heard_and_ended_as_a_child_is() -> None:
    before = descriptors()
    orphan = fork_orphan(lambda ends: repeat(ends) and sleep_on(ends))
    above = orphan.pid
    while above := parent_of(above):
        assert above != os.getpid()
    assert os.getsid(orphan.pid) == orphan.pid
    send(orphan.questions, b"hello")
    assert receive(orphan.answers, 5, time.monotonic() + 10) == b"hello"
    gone = os.pidfd_open(orphan.pid)
    assert end(orphan) is None
    assert select.select([gone], [], [], 10)[0]
    os.close(gone)
    assert descriptors() == before


def test_where_no_orphan_can_be_had_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before, ours, real = descriptors(), os.getpid(), (os.fork, os.pidfd_open)
    monkeypatch.setattr(os, "fork", lambda: real[0]() if os.getpid() == ours else no_room())
    with pytest.raises(OSError, match="no process could be started"):
        fork_orphan(sleep_on)
    monkeypatch.undo()
    there_is_room = iter((True, False))  # for who stands between us and the orphan, not for the orphan
    monkeypatch.setattr(os, "pidfd_open", lambda pid: real[1](pid) if next(there_is_room) else no_room())
    with pytest.raises(OSError, match="no room"):
        fork_orphan(lambda ends: len(os.read(ends.hears, 1)))
    assert descriptors() == before


def test_a_child_that_was_left_behind_is_reaped_once_it_has_ended() -> None:
    left_behind = None
    while left_behind is None:  # one that was gone at once shows nothing
        left_behind = end(fork(sleep_on), seconds=0)
    give_up = time.monotonic() + 10
    while not has_ended(left_behind):
        assert time.monotonic() < give_up
    assert not os.path.exists(f"/proc/{left_behind.pid}")


def state_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return stream.read().rpartition(b")")[2].split()[0]


def test_a_child_that_dies_too_late_is_no_zombie_any_more_once_the_next_one_is_forked() -> None:
    left_behind = None
    while left_behind is None:  # one that was gone at once shows nothing
        left_behind = end(fork(sleep_on), seconds=0)
    give_up = time.monotonic() + 10
    while state_of(left_behind.pid) != b"Z":
        assert time.monotonic() < give_up
    end(fork(lambda _: 0))
    assert not os.path.exists(f"/proc/{left_behind.pid}")


ANSWERED = """
import atexit, os
from autopsy.linux.child import in_child
from autopsy.linux.tasks import forking

def own_children_still_to_reap():
    in_child(lambda: b"", 5)
    return str(len(forking._dying)).encode()

in_child(lambda: b"", 5)
assert not forking._dying
forking.reap_late()
assert in_child(own_children_still_to_reap, 5) == b"0"
assert len(forking._dying) == 1
first = next(iter(forking._dying))
while os.path.exists(f"/proc/{first}") and open(f"/proc/{first}/stat").read().split()[2] != "Z":
    pass
in_child(lambda: b"", 5)
assert first not in forking._dying and not os.path.exists(f"/proc/{first}")
assert len(forking._dying) == 1
forking._reap_all()
assert not forking._dying
"""


def test_a_child_that_has_answered_is_reaped_when_the_next_is_forked_and_at_our_end() -> None:
    """In a process of its own: ours may have others' to reap. A child, which is ended itself, waits for its own."""
    subprocess.run([sys.executable, "-c", ANSWERED], capture_output=True, check=True)
