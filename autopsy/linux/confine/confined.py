"""Runs work in a confined child: it says what it finds, asks for what it may have, and its death is told."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from autopsy.dataclass import dataclass
from autopsy.linux.confine.sandbox import Confined, Sandbox, enter
from autopsy.linux.tasks.forking import (
    A_POLL_SECONDS,
    LENGTH,
    Child,
    Overdue,
    end,
    ended,
    fork,
    framed,
    receive,
    send,
    widen,
)

MOST_MESSAGE = 128 << 20
MOST_ALTOGETHER = 512 << 20
REAP_SECONDS = 1.0


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One thing that the child says. Whoever asks waits for an answer; after "done" and "failed" nothing follows."""

    kind: Literal["tell", "ask", "done", "failed"]
    name: str
    data: bytes


class Died(Exception):
    """The child ended without an answer; the message says how."""


class TooSlow(Exception):
    """The child did not end within its time, and was ended."""


class WorkRaised(Exception):
    """The work raised inside: `kind` is the exception's class, and `data` what it has to say."""

    def __init__(self, kind: str, data: bytes) -> None:
        super().__init__(f"{kind}: {data[:1000].decode('utf-8', 'replace')}")
        self.kind = kind
        self.data = data


@dataclass(frozen=True, slots=True)
class AnswerPipe:
    """The child's end of the line to whoever confined it."""

    told: int
    heard: int

    def tell(self, name: str, data: bytes) -> None:
        """Say something that needs no answer."""
        self._send(Message("tell", name, data))

    def ask(self, name: str, data: bytes = b"") -> bytes:
        """Ask for something, and wait for it."""
        self._send(Message("ask", name, data))
        return _read(self.heard, LENGTH.unpack(_read(self.heard, LENGTH.size))[0])

    def end(self, kind: Literal["done", "failed"], name: str, data: bytes) -> None:
        """Say the last word."""
        self._send(Message(kind, name, data))

    def _send(self, message: Message) -> None:
        packed = msgspec.msgpack.encode(message)
        send(self.told, framed(packed))


def run(
    work: Callable[[Confined, AnswerPipe], bytes],
    box: Sandbox,
    *,
    seconds: float,
    hear: Callable[[str, bytes], bytes],
    words: Callable[[BaseException], bytes] = lambda error: str(error).encode("utf-8", "replace"),
    own_input: bool = False,
    most: int = MOST_ALTOGETHER,
) -> bytes:
    """Run `work` in a confined child and return its bytes. `hear` is given what it says, and answers what it asks.

    It may say `most` bytes. The child and all that it started are dead when this returns. `words` puts an exception
    into bytes, inside; with `own_input` the child keeps stdin, stdout and stderr.

    Raises:
        Died: it ended by itself, by a signal or without a word, or spoke what no child of ours speaks.
        TooSlow: it took longer than `seconds`.
        Refused: the work raised.

    Concurrency: call it only from a process with one thread.
    """
    with begun(work, box, words=words, own_input=own_input) as answer:
        return answer(seconds, hear, most)


Answer = Callable[[float, Callable[[str, bytes], bytes], int], bytes]


@contextmanager
def begun(
    work: Callable[[Confined, AnswerPipe], bytes],
    box: Sandbox,
    *,
    words: Callable[[BaseException], bytes],
    own_input: bool = False,
) -> Iterator[Answer]:
    """Have `work` run in a confined child meanwhile; what is yielded waits for its answer, and raises as `run` does.

    The child is dead once this is left. Nobody hears what it says before it is waited for.

    Concurrency: call it only from a process with one thread.
    """
    child = fork(
        lambda ends: _live(work, box, AnswerPipe(ends.tells, ends.hears), words, own_input=own_input),
        own_namespace=True,
    )
    os.set_blocking(child.questions, False)
    widen(child.answers)
    widen(child.questions)

    def answer(seconds: float, hear: Callable[[str, bytes], bytes], most: int) -> bytes:
        try:
            return _Conversation(child, time.monotonic() + seconds, hear, most).hold()
        except Overdue:
            raise TooSlow from None
        except EOFError:
            raise Died(_in_words(_exit_code(child))) from None
        except msgspec.DecodeError as error:
            raise Died(f"it spoke what no process of ours speaks: {error}") from None

    try:
        yield answer
    finally:
        end(child, seconds=REAP_SECONDS)


@dataclass(slots=True)
class _Conversation:
    child: Child
    until: float
    hear: Callable[[str, bytes], bytes]
    most: int
    total: int = 0

    def hold(self) -> bytes:
        while True:
            size = LENGTH.unpack(self._receive(LENGTH.size))[0]
            self.total += size
            if size > MOST_MESSAGE or self.total > self.most:
                raise msgspec.DecodeError("it says more than it may")
            message = msgspec.msgpack.decode(self._receive(size), type=Message)
            match message.kind:
                case "tell":
                    self.hear(message.name, message.data)
                case "ask":
                    answer = self.hear(message.name, message.data)
                    self._send(framed(answer))
                case "done":
                    return message.data
                case "failed":
                    raise WorkRaised(message.name[:100], message.data)

    def _receive(self, size: int) -> bytes:
        return receive(self.child.answers, size, self.until)

    def _send(self, data: bytes) -> None:
        poller = select.poll()
        poller.register(self.child.questions, select.POLLOUT)
        view = memoryview(data)
        while view:
            if not poller.poll(min(max(0.0, self.until - time.monotonic()), A_POLL_SECONDS) * 1000):
                raise Overdue
            try:
                view = view[os.write(self.child.questions, view) :]
            except BrokenPipeError:
                raise EOFError from None


def _live(
    work: Callable[[Confined, AnswerPipe], bytes],
    box: Sandbox,
    line: AnswerPipe,
    words: Callable[[BaseException], bytes],
    *,
    own_input: bool,
) -> int:
    _let_go_of_all_but((line.told, line.heard, *box.keep, *((0, 1, 2) if own_input else ())))
    try:
        line.end("done", "", work(enter(box), line))
    except BaseException as error:  # noqa: BLE001 - whatever it is, its words are all that anybody will ever see
        line.end("failed", type(error).__name__, words(error))
        return 1
    return 0


def _let_go_of_all_but(kept: tuple[int, ...]) -> None:
    """Put /dev/null in the place of every other descriptor: its number may yet be closed, and must not be another's."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2, *map(int, os.listdir("/proc/self/fd"))} - {null, *kept}:
        with contextlib.suppress(OSError):  # that with which the folder was listed is closed by now
            os.fstat(descriptor)
            os.dup2(null, descriptor, inheritable=descriptor <= 2)


def _exit_code(child: Child) -> int | None:
    """Return how it ended: it had closed its pipe, and may be about to."""
    with contextlib.suppress(ChildProcessError):
        return ended(child.pidfd, REAP_SECONDS)
    return None


def _in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "it ended without an answer"
    if exit_code < 0:
        return f"it died: {signal_name(-exit_code)}"
    return f"it ended without an answer (exit status {exit_code})"


def signal_name(number: int) -> str:
    """Return SIGSEGV for 11; a real-time signal has only its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
