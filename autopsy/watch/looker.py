"""A process of ours that looks at the memory of VMs, and is given up with the one that it hangs at.

To read another process's memory is to take the lock of its memory map, which a thread of a stuck VM can hold for ever.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from autopsy.linux.tasks.forking import die_with_parent
from autopsy.watch import coroutine_look
from autopsy.watch.coroutine_look import AnotherProcess, CoroutineLook, WatchedStacks

EACH = 0.5  # seconds for one VM
OVERALL = 4.0  # for all of one round
MOST_STUCK = 8  # processes of ours that hang in the kernel, before no further one is started
MOST_ANSWER = 8 << 20
LENGTH = struct.Struct("<I")
END_SECONDS = 1.0


class LookQuestion(msgspec.Struct, frozen=True, array_like=True):
    """Which process to look at, and how large it is now; `gone` ones are forgotten."""

    pid: int
    start_ticks: int
    size: int
    gone: bool = False


class _LookAnswer(msgspec.Struct, frozen=True, array_like=True):
    pid: int
    look: CoroutineLook | None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class NoLook:
    """There was no look: it hung, or (`hung` is false) the process is gone, or not ours to look at."""

    hung: bool


Looked = CoroutineLook | NoLook


class Looker:
    """Looks at VMs' coroutines in a child, which is replaced when it hangs. Close it after use.

    Concurrency: it forks, so it is for a process with one thread.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._asking = -1
        self._answers = -1
        self._stuck: list[int] = []
        self.questions = 0

    def look(self, questions: Iterable[LookQuestion]) -> dict[int, Looked]:
        """Return what was seen of each process, by its PID. Never raises for what a process does."""
        wanted = {each.pid: each for each in questions}
        found: dict[int, Looked] = {}
        give_up = time.monotonic() + OVERALL
        while left := [each for pid, each in wanted.items() if pid not in found]:
            if time.monotonic() > give_up or not self._provide():
                return found | {each.pid: NoLook(hung=True) for each in left}
            found |= self._ask(left, give_up)
        return found

    def close(self) -> None:
        """End the child; one that cannot be ended is left to the kernel."""
        if self._pid:
            self._abandon()
        self._reap()

    def _ask(self, left: list[LookQuestion], give_up: float) -> dict[int, Looked]:
        """Put all questions that are left, and return the answers up to the one that hangs, which is among them."""
        data = msgspec.msgpack.encode(left)
        found: dict[int, Looked] = {}
        try:
            _send(self._asking, data)
            for question in left:
                answer = _receive(self._answers, min(give_up, time.monotonic() + EACH))
                if answer is None:
                    found[question.pid] = NoLook(hung=True)
                    self._abandon()
                    return found
                told = msgspec.msgpack.decode(answer, type=_LookAnswer)
                found[question.pid] = told.look if told.look is not None else NoLook(hung=False)
        except (OSError, msgspec.MsgspecError):
            first = next(each for each in left if each.pid not in found)
            found[first.pid] = NoLook(hung=True)
            self._abandon()
        return found

    def _provide(self) -> bool:
        """Start a child where there is none; return whether there is one."""
        if self._pid:
            return True
        self._reap()
        if len(self._stuck) >= MOST_STUCK:
            return False
        try:
            asked, self._asking = os.pipe2(os.O_CLOEXEC)
            self._answers, answering = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
        except OSError:
            return False
        if pid == 0:
            _be_the_looker(asked, answering, (self._asking, self._answers))
        os.close(asked)
        os.close(answering)
        self._pid = pid
        return True

    def _abandon(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # it is our child, and not waited for: the number is still its own
        os.close(self._asking)
        os.close(self._answers)
        self._stuck.append(self._pid)
        self._pid = 0
        self._reap(END_SECONDS / 10)

    def _reap(self, seconds: float = 0.0) -> None:
        give_up = time.monotonic() + seconds
        while True:
            self._stuck = [pid for pid in self._stuck if not _has_ended(pid)]
            if not self._stuck or time.monotonic() >= give_up:
                return
            time.sleep(0.005)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _send(descriptor: int, data: bytes) -> None:
    view = memoryview(LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(descriptor, view) :]


def _receive(descriptor: int, give_up: float) -> bytes | None:
    """Return one message, None when it does not come in time.

    Raises:
        OSError: whoever sent it is gone, or sends nonsense.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    received = bytearray()
    wanted = LENGTH.size
    while len(received) < wanted:
        left = give_up - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            return None
        part = os.read(descriptor, wanted - len(received))
        if not part:
            raise BrokenPipeError
        received += part
        if len(received) == LENGTH.size == wanted:
            wanted += min(LENGTH.unpack(received)[0], MOST_ANSWER)
    return bytes(received[LENGTH.size :])


def _be_the_looker(asked: int, answering: int, others: tuple[int, int]) -> None:
    """Answer until nobody asks any more; never return."""
    try:
        os.setsid()
        die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in others:
            os.close(descriptor)
        known: dict[tuple[int, int], WatchedStacks] = {}
        while True:
            head = os.read(asked, LENGTH.size)
            if len(head) < LENGTH.size:
                break
            data = bytearray()
            while len(data) < LENGTH.unpack(head)[0]:
                data += os.read(asked, LENGTH.unpack(head)[0] - len(data))
            for question in msgspec.msgpack.decode(bytes(data), type=list[LookQuestion]):
                _send(answering, msgspec.msgpack.encode(_LookAnswer(question.pid, _look(known, question))))
    finally:
        os._exit(0)


def _look(known: dict[tuple[int, int], WatchedStacks], question: LookQuestion) -> CoroutineLook | None:
    key = (question.pid, question.start_ticks)
    if question.gone:
        if key in known:
            known.pop(key).close()
        return None
    try:
        if key not in known:
            known[key] = coroutine_look.watched(*key)
        return known[key].look(question.size)
    except (OSError, AnotherProcess, ValueError, IndexError):
        if key in known:
            known.pop(key).close()
        return None
