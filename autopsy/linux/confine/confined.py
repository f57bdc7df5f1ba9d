"""Runs work in a confined child: it says what it finds, asks for what it may have, and its death is told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from autopsy.linux.confine.sandbox import Confined, Sandbox, enter

MOST_MESSAGE = 128 << 20
MOST_ALTOGETHER = 512 << 20
REAP_SECONDS = 1.0
LONGEST = 1e6  # seconds that a poll can wait
CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG = 1
LENGTH = struct.Struct("<I")

_libc = ctypes.CDLL(None, use_errno=True)


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
        view = memoryview(LENGTH.pack(len(packed)) + packed)
        while view:
            view = view[os.write(self.told, view) :]


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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    heard, telling = os.pipe2(os.O_CLOEXEC)
    listening, answering = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = _fork()
    if pid == 0:
        os.close(heard)
        os.close(answering)
        _be_confined(work, box, AnswerPipe(telling, listening), parent, words, own_input=own_input)
    os.close(telling)
    os.close(listening)
    os.set_blocking(answering, False)
    status: int | None = None
    pidfd = os.pidfd_open(pid)
    try:
        return _Conversation(heard, answering, time.monotonic() + seconds, hear, most).hold()
    except EOFError:
        status = _ended(pid, pidfd)
        raise Died(_in_words(status)) from None
    except msgspec.DecodeError as error:
        raise Died(f"it spoke what no process of ours speaks: {error}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # the first of its namespace: all others go with it
        if status is None:
            _ended(pid, pidfd)
        for descriptor in (pidfd, heard, answering):
            os.close(descriptor)


@dataclass(slots=True)
class _Conversation:
    heard: int
    answering: int
    ends_at: float
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
                    self._send(LENGTH.pack(len(answer)) + answer)
                case "done":
                    return message.data
                case "failed":
                    raise WorkRaised(message.name[:100], message.data)

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self.heard, select.POLLIN)
            part = os.read(self.heard, min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self.answering, select.POLLOUT)
            try:
                view = view[os.write(self.answering, view) :]
            except BrokenPipeError:
                raise EOFError from None

    def _wait(self, descriptor: int, what: int) -> None:
        poller = select.poll()
        poller.register(descriptor, what)
        if not poller.poll(min(max(0.0, self.ends_at - time.monotonic()), LONGEST) * 1000):
            raise TooSlow


def _fork() -> int:
    """Fork a child that is the first process of a PID namespace, where the kernel lets us."""
    if os.geteuid() != 0:
        return os.fork()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        apart = _libc.unshare(CLONE_NEWPID) == 0
        pid = os.fork()
        if apart and pid:
            _libc.setns(ours, CLONE_NEWPID)
    finally:
        os.close(ours)
    return pid


def _be_confined(
    work: Callable[[Confined, AnswerPipe], bytes],
    box: Sandbox,
    line: AnswerPipe,
    parent: int,
    words: Callable[[BaseException], bytes],
    *,
    own_input: bool,
) -> None:
    status = 1
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() not in {parent, 0}:  # 0: it is outside of our namespace
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _let_go_of_all_but((line.told, line.heard, *box.keep, *((0, 1, 2) if own_input else ())))
        try:
            line.end("done", "", work(enter(box), line))
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, its words are all that anybody will ever see
            line.end("failed", type(error).__name__, words(error))
    finally:
        os._exit(status)


def _let_go_of_all_but(kept: tuple[int, ...]) -> None:
    """Put /dev/null in the place of every other descriptor: its number may yet be closed, and must not be another's."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in {0, 1, 2, *map(int, os.listdir("/proc/self/fd"))} - {null, *kept}:
        with contextlib.suppress(OSError):  # that with which the folder was listed is closed by now
            os.fstat(descriptor)
            os.dup2(null, descriptor, inheritable=descriptor <= 2)


def _ended(pid: int, pidfd: int) -> int | None:
    """Wait for the child's end and return its wait status; None where it sleeps in the kernel and stays."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(REAP_SECONDS * 1000):
        return None
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, 0)[1]
    return None


def _in_words(status: int | None) -> str:
    if status is None:
        return "it ended without an answer"
    if os.WIFSIGNALED(status):
        return f"it died: {signal_name(os.WTERMSIG(status))}"
    return f"it ended without an answer (exit status {os.WEXITSTATUS(status)})"


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
