"""Reads what may never answer: in a forked reader that is replaced when it hangs, so that a hang costs one section."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from enum import IntEnum
from types import TracebackType
from typing import Self

from autopsy.bundle import proc_stat
from autopsy.bundle.manifest import LeftBehind
from autopsy.bundle.sections import REST, Section, render
from autopsy.capture.step import Collected, Deadline, Outcome, Scene, TimedOut
from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.linux.child import spawn
from autopsy.linux.tasks.forking import LENGTH, PIPE_BYTES, end, framed, send, widen

ANSWER_SECONDS = 1.0  # a file of /proc or /sys that answers at all answers in a few milliseconds
MARGIN_SECONDS = 0.25  # kept back from a step's deadline, to end the reader and to say what became of it
MOST_WHY = 200  # what a section's header holds
TOLD_HANGS = 8
MANY = 256  # reads to come: then we let the pipe fill, for waking up for each of thousands takes the reader's CPU
GATHER_SECONDS = 0.004

FRAME = struct.Struct("<BHI")  # what kind, bytes of why, bytes of data


class _Kind(IntEnum):
    WHOLE = 1
    CUT = 2
    ERROR = 3


class Unreadable(Exception):
    """A read has nothing to give; its words say why."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """What was read before a bound of ours was reached, and which."""

    data: bytes
    why: str


def as_far_as_read(data: bytes | Truncated) -> bytes:
    """Return the bytes, whether or not a bound of ours was reached."""
    return data.data if isinstance(data, Truncated) else data


@dataclass(frozen=True, slots=True)
class SectionRead:
    """One thing to read: the section that it becomes, and how.

    Reads that would hang together share a `fate` ("mmap_lock", one mount): after the first that hangs, the rest of
    them are not tried. One that `alters` its reader (a namespace, whose rights it has) is its last.
    """

    name: str
    take: Callable[[], bytes | Truncated]
    fate: str = ""
    seconds: float = ANSWER_SECONDS
    alters: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """A read that did not answer, and the kernel function that its reader slept in."""

    name: str
    seconds: float
    wchan: str

    @property
    def why(self) -> str:
        """Return it in words, without the name."""
        where = f", asleep in {self.wchan}" if self.wchan else ""
        return f"did not answer in {self.seconds:.1f} s{where}"


@dataclass(slots=True)
class ReadFailures:
    """What went wrong in a step's reads, gathered while it goes.

    Within `one_reader` a reader that has answered is kept for the next reads, instead of forking another: `waiting`.
    """

    hangs: list[Hang] = field(default_factory=list)
    left_behind: list[LeftBehind] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: int = 0
    keeps: bool = False
    waiting: _Reader | None = None

    @contextlib.contextmanager
    def one_reader(self) -> Iterator[None]:
        """Have one reader read all, one list after the other, until one hangs; what it is asked then is pickled."""
        self.keeps = True
        try:
            yield
        finally:
            self.keeps = False
            self._let_go()

    def reader_for(self, reads: Sequence[SectionRead]) -> _Reader:
        """Return the reader that waits, at work on these, or a new one."""
        if self.waiting is not None and len(reads) < MANY and self.waiting.ask(reads):
            reader, self.waiting = self.waiting, None
            return reader
        self._let_go()
        return _Reader(reads)

    def done_with(self, reader: _Reader, reads: Sequence[SectionRead]) -> None:
        """End a reader, or keep it for what is read next."""
        if self.keeps and reader.has_answered and not any(read.alters for read in reads):
            self.waiting = reader
        else:
            self.left_behind += reader.end()

    def _let_go(self) -> None:
        if self.waiting is not None:
            self.left_behind += self.waiting.end()
            self.waiting = None

    def outcome(self) -> Outcome:
        """Return TimedOut if any read was cut off by a deadline of ours, Collected otherwise, with everything told."""
        troubles = [f"{_fits_a_header(hang.name)} {hang.why}" for hang in self.hangs[:TOLD_HANGS]]
        if len(self.hangs) > TOLD_HANGS:
            troubles.append(f"so did {len(self.hangs) - TOLD_HANGS} more")
        if self.unread:
            troubles.append(f"{self.unread} sections were not read in time")
        troubles += [f"left behind: {left.pid} ({left.state}, {left.wchan})" for left in self.left_behind]
        why = "; ".join(troubles + self.notes)
        return TimedOut(why) if self.hangs or self.unread else Collected(why)


class SectionFile:
    """A file of sections that is on disk as far as it was read, whatever ends us."""

    def __init__(self, scene: Scene, file: str) -> None:
        self._stream = private.begin(scene.folder / file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, sections: Iterable[Section]) -> None:
        """Store some more sections at once."""
        view = memoryview(render(sections))
        while view:
            view = view[self._stream.write(view) :]


def sections(reads: Iterable[SectionRead], deadline: Deadline, trouble: ReadFailures) -> Iterator[list[Section]]:
    """Read them in order and yield the sections as they come, several at a time; never raises for what a read does.

    Every read gives one section: its data, or the error's name, or that it did not answer. A read that was cut at a
    bound of ours is followed by an unreadable section `<name> (rest)`.

    Concurrency: call it only from a process with one thread. Closing the iterator ends the reader.
    """
    pending = list(reads)
    while pending:
        if deadline.left() <= MARGIN_SECONDS:
            trouble.unread += len(pending)
            yield [Section(read.name, b"", error="not read: this step's time was up") for read in pending]
            return
        asked = pending
        reader = trouble.reader_for(asked)
        done = 0
        hang = None
        try:
            while answers := reader.receive(pending[done].seconds, deadline):
                yield [
                    section
                    for read, answer in zip(pending[done:], answers, strict=False)
                    for section in answer.sections(read.name)
                ]
                done += len(answers)
                if done == len(pending):
                    break
                if len(pending) - done >= MANY:
                    time.sleep(GATHER_SECONDS)
        except _Silent as silent:
            hang = Hang(pending[done].name, silent.seconds, silent.wchan)
        finally:
            trouble.done_with(reader, asked)
        if done < len(pending):
            stopped, pending = pending[done], pending[done + 1 :]
            if hang is None:
                yield [Section(stopped.name, b"", error="its reader died")]
                continue
            trouble.hangs.append(hang)
            sharing = [read for read in pending if stopped.fate and read.fate == stopped.fate]
            pending = [read for read in pending if not stopped.fate or read.fate != stopped.fate]
            yield [
                Section(stopped.name, b"", error=_fits_a_header(hang.why)),
                *(Section(read.name, b"", error=_fits_a_header(f"not tried: {stopped.name} hung")) for read in sharing),
            ]
        else:
            return


def store(scene: Scene, file: str, reads: Iterable[SectionRead], trouble: ReadFailures) -> dict[str, Section]:
    """Read them into one file of sections, and return those sections by name."""
    kept: dict[str, Section] = {}
    with SectionFile(scene, file) as stored:
        for batch in sections(reads, scene.deadline, trouble):
            stored.append(batch)
            kept.update((section.name, section) for section in batch)
    return kept


def take(reads: Iterable[SectionRead], deadline: Deadline, trouble: ReadFailures) -> dict[str, Section]:
    """Read them into memory, by name."""
    return {section.name: section for batch in sections(reads, deadline, trouble) for section in batch}


class _Silent(Exception):
    """The reader has not answered; `wchan` is where it sleeps."""

    def __init__(self, seconds: float, wchan: str) -> None:
        super().__init__()
        self.seconds = seconds
        self.wchan = wchan


@dataclass(frozen=True, slots=True)
class _Answer:
    kind: _Kind
    why: str
    data: bytes

    def sections(self, name: str) -> tuple[Section, ...]:
        match self.kind:
            case _Kind.WHOLE:
                return (Section(name, self.data),)
            case _Kind.CUT:
                return (Section(name, self.data), Section(f"{name}{REST}", b"", error=self.why or "cut"))
            case _Kind.ERROR:
                return (Section(name, b"", error=self.why or "unknown"),)


class _Reader:
    """One forked reader, at work on a list of reads; what it read arrives through a pipe of its own.

    Once it has answered it waits for another list.
    """

    def __init__(self, reads: Sequence[SectionRead]) -> None:
        self._pipe, sending = os.pipe2(os.O_CLOEXEC)
        hearing, self._questions = os.pipe2(os.O_CLOEXEC)
        widen(sending)
        self._buffer = bytearray()
        self._owed = len(reads)
        self._poller = select.poll()
        self._poller.register(self._pipe, select.POLLIN)

        def live() -> bytes:
            os.close(self._questions)
            return _serve(reads, sending, hearing)

        try:
            self._child = spawn(live)
        finally:
            os.close(sending)
            os.close(hearing)

    @property
    def has_answered(self) -> bool:
        """Return whether it owes nothing, and waits."""
        return self._owed == 0 and not self._buffer

    def ask(self, reads: Sequence[SectionRead]) -> bool:
        """Have it read some more, and return whether it can: not what lives in this process alone."""
        try:
            send(self._questions, framed(pickle.dumps(reads)))
        except (pickle.PicklingError, AttributeError, TypeError, OSError):
            return False
        self._owed = len(reads)
        return True

    def receive(self, seconds: float, deadline: Deadline) -> list[_Answer]:
        """Return the answers that have come, at least one; none when the reader has ended.

        Raises:
            _Silent: nothing came for that many seconds, or the deadline is near.
        """
        asked = time.monotonic()
        patience = asked + seconds
        while not (answers := self._whole_answers()):
            now = time.monotonic()
            last = deadline.at - MARGIN_SECONDS
            if now >= min(patience, last) and not self._arrived(0):
                if now < last and self._state() == "R":  # it wants a CPU, not an answer: that is no hang
                    patience = now + seconds
                    continue
                raise _Silent(now - asked, self._wchan())
            if not self._arrived(min(patience, last) - now):
                continue
            part = os.read(self._pipe, PIPE_BYTES)
            if not part:
                return []
            self._buffer += part
            patience = time.monotonic() + seconds
        return answers

    def end(self) -> list[LeftBehind]:
        """End the reader with all that it started; return it where it can't be ended."""
        os.close(self._pipe)
        os.close(self._questions)
        left = end(self._child, answered=self._owed == 0)
        return [left] if left else []

    def _arrived(self, seconds: float) -> bool:
        return bool(self._poller.poll(max(0.0, seconds) * 1000))

    def _whole_answers(self) -> list[_Answer]:
        answers = []
        place = 0
        while len(self._buffer) >= place + FRAME.size:
            kind, why_size, data_size = FRAME.unpack_from(self._buffer, place)
            why = place + FRAME.size
            data = why + why_size
            if len(self._buffer) < data + data_size:
                break
            place = data + data_size
            words = self._buffer[why:data].decode("utf-8", "replace")
            answers.append(_Answer(_Kind(kind), words, bytes(self._buffer[data:place])))
            self._owed -= 1
        del self._buffer[:place]
        return answers

    def _state(self) -> str:
        with contextlib.suppress(OSError), open(f"/proc/{self._child.pid}/stat", "rb") as stream:
            return proc_stat.parse(stream.read()).state or "?"
        return "?"

    def _wchan(self) -> str:
        with contextlib.suppress(OSError), open(f"/proc/{self._child.pid}/wchan", "rb") as stream:
            return stream.read(256).decode("utf-8", "replace").strip("0\n")
        return ""


def _serve(reads: Sequence[SectionRead], sending: int, hearing: int) -> bytes:
    """Be the reader, until nobody asks any more."""
    with open(hearing, "rb", closefd=False) as questions:
        while True:
            _answer(reads, sending)
            length = questions.read(LENGTH.size)
            if len(length) < LENGTH.size:
                return b""
            reads = pickle.loads(questions.read(LENGTH.unpack(length)[0]))  # noqa: S301 - who forked us asks


def _answer(reads: Sequence[SectionRead], sending: int) -> None:
    """Send every read's answer as soon as it is there."""
    for read in reads:
        kind, why, data = _Kind.WHOLE, "", b""
        try:
            taken = read.take()
            if isinstance(taken, Truncated):
                kind, why, data = _Kind.CUT, taken.why, taken.data
            else:
                data = taken
        except Unreadable as error:
            kind, why = _Kind.ERROR, str(error)
        except OSError as error:
            kind, why = _Kind.ERROR, errno.errorcode.get(error.errno or 0, str(error))
        except Exception as error:  # noqa: BLE001 - one read's error must not cost the others their answers
            kind, why = _Kind.ERROR, f"{type(error).__name__}: {error}"
        words = _fits_a_header(why).encode("utf-8", "replace")
        send(sending, FRAME.pack(kind, len(words), len(data)) + words + data)


def _fits_a_header(why: str) -> str:
    """Return an error's words as sections.py can hold them between its parentheses."""
    return "".join(letter if letter.isprintable() and letter.isascii() and letter != ")" else "_" for letter in why)[
        :MOST_WHY
    ]
