"""A process of ours that looks at the memory of VMs, and is given up with the one that it hangs at.

To read another process's memory is to take the lock of its memory map, which a thread of a stuck VM can hold for ever.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import msgspec

from autopsy.bundle.manifest import LeftBehind
from autopsy.dataclass import dataclass
from autopsy.linux.tasks.forking import (
    Child,
    Overdue,
    PipeEnds,
    end,
    fork,
    framed,
    has_ended,
    receive_framed,
    send,
)
from autopsy.linux.tasks.patience import Hangs, Patience
from autopsy.watch import coroutine_look
from autopsy.watch.coroutine_look import AnotherProcess, CoroutineLook, WatchedStacks

EACH = 0.5  # seconds for one VM, in which the child need not run at all
OVERALL = 4.0  # for all of one round, after which none is asked of whom another has hung before
MOST_PATIENCE = 12.0  # for all of one round where the child hangs at none: it is given no processor
MOST_STUCK = 8  # processes of ours that hang in the kernel, before no further one is started
MOST_ANSWER = 8 << 20
END_SECONDS = 0.1


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
        self._child: Child | None = None
        self._stuck: list[LeftBehind] = []

    def look(self, questions: Iterable[LookQuestion]) -> dict[int, Looked]:
        """Return what was seen of each process, by its PID. Never raises for what a process does."""
        wanted = {question.pid: question for question in questions}
        looks: dict[int, Looked] = {}
        began = time.monotonic()
        give_up = began + OVERALL
        while left := [question for pid, question in wanted.items() if pid not in looks]:
            if time.monotonic() > give_up or (child := self._provide()) is None:
                return looks | {question.pid: NoLook(hung=True) for question in left}
            try:
                looks |= self._ask(child, left, began + MOST_PATIENCE)
            except _TooSlow as slow:
                return looks | slow.looks
        return looks

    def close(self) -> None:
        """End the child; one that cannot be ended is left to the kernel."""
        if self._child is not None:
            self._abandon(self._child)

    def _ask(self, child: Child, left: list[LookQuestion], until: float) -> dict[int, Looked]:
        """Put all questions that are left, and return the answers up to the one that hangs, which is among them.

        Raises:
            _TooSlow: the child is at work, and has not come to an end.
        """
        looks: dict[int, Looked] = {}
        try:
            _send(child.questions, msgspec.msgpack.encode(left))
            for question in left:
                data = receive_framed(child.answers, MOST_ANSWER, until, Patience(child.pid, EACH))
                look = msgspec.msgpack.decode(data, type=_LookAnswer).look
                looks[question.pid] = NoLook(hung=False) if look is None else look
        except Overdue:
            self._abandon(child)
            raise _TooSlow(looks) from None
        except (Hangs, EOFError, OSError, msgspec.MsgspecError):
            hanging = next(question for question in left if question.pid not in looks)
            looks[hanging.pid] = NoLook(hung=True)
            self._abandon(child)
        return looks

    def _provide(self) -> Child | None:
        """Return the child, started where there is none; None where there can be none."""
        if self._child is None:
            self._stuck = [left_behind for left_behind in self._stuck if not has_ended(left_behind)]
            if len(self._stuck) < MOST_STUCK:
                with contextlib.suppress(OSError):
                    self._child = fork(_answer, own_session=True)
        return self._child

    def _abandon(self, child: Child) -> None:
        self._child = None
        left_behind = end(child, answered=True, seconds=END_SECONDS)  # it has started nothing
        if left_behind is not None:
            self._stuck.append(left_behind)


def _send(descriptor: int, data: bytes) -> None:
    send(descriptor, framed(data))


class _TooSlow(Exception):
    """The child is given too little of a processor: these looks are all that there are."""

    def __init__(self, looks: dict[int, Looked]) -> None:
        super().__init__()
        self.looks = looks


def _answer(ends: PipeEnds) -> int:
    """Be the looker: answer until nobody asks any more."""
    known: dict[tuple[int, int], WatchedStacks] = {}
    while True:
        for question in msgspec.msgpack.decode(receive_framed(ends.hears, MOST_ANSWER), type=list[LookQuestion]):
            _send(ends.tells, msgspec.msgpack.encode(_LookAnswer(question.pid, _look(known, question))))


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
