"""Children that may be abandoned."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from autopsy.files.plain import NotPlain
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, in_child, spawn
from autopsy.linux.trouble import FailureKind


def test_the_answer_comes_back_whole() -> None:
    data = os.urandom(3 << 20)
    assert in_child(lambda: data, 10) == data


def test_an_error_comes_back_in_its_own_words() -> None:
    def work() -> bytes:
        raise FileNotFoundError(2, "No such file", "/nowhere")

    with pytest.raises(ChildFailed, match=r"FileNotFoundError.*nowhere"):
        in_child(work, 10)


def test_a_child_that_hangs_is_given_up_and_gone(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work() -> bytes:
        pid_file.write_text(str(os.getpid()))
        time.sleep(600)
        return b""

    with pytest.raises(ChildTimedOut) as caught:
        in_child(work, 0.5)
    assert caught.value.left_behind is None
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


def test_a_child_that_is_killed_from_outside_is_a_failure_not_a_hang() -> None:
    def work() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with pytest.raises(ChildFailed, match="without an answer"):
        in_child(work, 10)


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_the_answer_back() -> None:
    def work() -> bytes:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        return b"done"

    assert in_child(work, 10) == b"done"


def test_what_the_child_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work() -> bytes:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        pid_file.write_text(str(pid))
        time.sleep(600)
        return b""

    with pytest.raises(ChildTimedOut):
        in_child(work, 0.5)
    for _ in range(100):
        state = Path(f"/proc/{pid_file.read_text()}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the grandchild is still there")


def test_the_clock_ticks_while_the_child_works() -> None:
    ticks: list[int] = []

    def work() -> bytes:
        time.sleep(0.5)
        return b"x"

    assert collect(spawn(work), 10, lambda: ticks.append(1)) == b"x"
    assert len(ticks) >= 2


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OSError(errno.ENOSPC, "in the words of some language"), FailureKind.FULL),
        (OSError(errno.EDQUOT, ""), FailureKind.FULL),
        (PermissionError(errno.EACCES, ""), FailureKind.NOT_PERMITTED),
        (FileNotFoundError(errno.ENOENT, ""), FailureKind.GONE),
        (ProcessLookupError(errno.ESRCH, ""), FailureKind.GONE),
        (NotPlain("a FIFO"), FailureKind.NOT_PLAIN),
        (ValueError("No space left on device"), FailureKind.OTHER),
    ],
)
def test_what_went_wrong_comes_back_as_what_code_can_act_on(error: Exception, trouble: FailureKind) -> None:
    def work() -> bytes:
        raise error

    with pytest.raises(ChildFailed) as caught:
        in_child(work, 5)
    assert caught.value.trouble is trouble
