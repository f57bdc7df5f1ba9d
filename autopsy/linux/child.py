"""Runs work in a forked child that answers once: for anything that can block in the kernel."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable

from autopsy.bundle.manifest import LeftBehind
from autopsy.linux.tasks.forking import (
    TICK_SECONDS,
    Child,
    Overdue,
    PipeEnds,
    end,
    fork,
    in_words,
    receive,
    send,
)
from autopsy.linux.tasks.patience import Hangs, Patience
from autopsy.linux.trouble import FailureKind, trouble_of

MOST_BYTES = 256 << 20  # of one child's answer: a bound on our memory, not on any evidence we know of

# Good or not, the kind of failure, then the length. The end of the pipe would not do: a grandchild that is stuck in the
# kernel holds it open.
HEADER = struct.Struct("<?BQ")
AGAIN = b"\n"  # what a lasting child hears


class ChildTimedOut(Exception):
    """The child did not answer in time. `left_behind` is set where even SIGKILL did not end it."""

    def __init__(self, seconds: float, left_behind: LeftBehind | None) -> None:
        super().__init__(f"no answer in {seconds:.1f} s{in_words(left_behind)}")
        self.left_behind = left_behind


class ChildFailed(Exception):
    """The child's work raised, or the child died. The message is the error's own words, for people."""

    def __init__(self, words: str, trouble: FailureKind = FailureKind.OTHER) -> None:
        super().__init__(words)
        self.trouble = trouble


def spawn(work: Callable[[], bytes]) -> Child:
    """Fork a child in a session of its own that runs `work` and sends its bytes, or the error's words, back.

    Raises:
        ChildFailed: there is no room for another process, or no descriptor for it.

    Concurrency: call it only from a process with one thread.
    """
    try:
        return fork(lambda ends: _answer(work, ends), own_session=True)
    except OSError as error:
        raise ChildFailed(f"no process could be started: {error.strerror}", trouble_of(error)) from error


def spawn_lasting(work: Callable[[], bytes]) -> Child:
    """Fork a child as `spawn` does, which runs `work` again, and answers again, whenever it is asked `again`.

    Raises:
        ChildFailed: as `spawn` raises it.
    """

    def answer(ends: PipeEnds) -> int:
        while _answer(work, ends) == 0 and os.read(ends.hears, len(AGAIN)):
            pass
        return 0

    try:
        return fork(answer, own_session=True)
    except OSError as error:
        raise ChildFailed(f"no process could be started: {error.strerror}", trouble_of(error)) from error


def again(child: Child) -> bool:
    """Ask a lasting child that has answered for the next answer, and return whether it is still there to be asked."""
    with contextlib.suppress(BrokenPipeError):
        return os.write(child.questions, AGAIN) == len(AGAIN)
    return False


def _answer(work: Callable[[], bytes], ends: PipeEnds) -> int:
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    try:
        data = work()
        send(ends.tells, HEADER.pack(True, FailureKind.OTHER, len(data)) + data)  # noqa: FBT003 - a struct's fields
    except BaseException as error:  # noqa: BLE001 - whatever it is, its words are all that the parent will ever see
        words = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        send(ends.tells, HEADER.pack(False, trouble_of(error), len(words)) + words)  # noqa: FBT003 - likewise
        return 1
    return 0


def collect(
    child: Child,
    seconds: float,
    tick: Callable[[], None] | None = None,
    *,
    every: float = TICK_SECONDS,
    lasting: bool = False,
) -> bytes:
    """Wait for the child's answer at most `seconds`, calling `tick` `every` so many; then end it.

    A `lasting` child is left alone once it has answered well.

    Raises:
        ChildTimedOut: no whole answer in time.
        ChildFailed: the work raised, or the child was ended from outside.
    """
    until = time.monotonic() + seconds
    good, trouble, data, answered = False, 0, b"", False
    try:
        good, trouble, length = HEADER.unpack(receive(child.answers, HEADER.size, until, tick, every=every))
        if length > MOST_BYTES:
            raise ChildFailed(f"it would answer more than {MOST_BYTES >> 20} MiB")
        data = receive(child.answers, length, until, tick, every=every)
        answered = True
    except EOFError:
        raise ChildFailed("the child process ended without an answer") from None
    except Overdue:
        pass  # told below, with what became of it
    finally:
        left_behind = None if lasting and answered and good else end(child, answered=answered)
    if not answered:
        raise ChildTimedOut(seconds, left_behind)
    if good:
        return data
    raise ChildFailed(data.decode("utf-8", "replace"), FailureKind(trouble))


def in_child(work: Callable[[], bytes], seconds: float) -> bytes:
    """Run `work` in a child process that is given up after `seconds`, and return its bytes.

    Raises:
        ChildTimedOut: it did not answer in time; it was killed, or could not be and is named.
        ChildFailed: it raised; the message is the error's own words.
    """
    return collect(spawn(work), seconds)


def in_patient_child(work: Callable[[], bytes], asleep_seconds: float, seconds: float) -> bytes:
    """Run `work` as `in_child` does, but give it up early only where it sleeps: a busy host makes any child late.

    Raises:
        ChildTimedOut: it slept for `asleep_seconds`, or did not answer in `seconds`.
        ChildFailed: it raised; the message is the error's own words.
    """
    child = spawn(work)
    patience = Patience(child.pid, asleep_seconds)
    try:
        return collect(child, seconds, patience)
    except Hangs:
        raise ChildTimedOut(asleep_seconds, None) from None
    except OSError as error:
        raise ChildFailed(f"it is gone: {error.strerror}", trouble_of(error)) from error
