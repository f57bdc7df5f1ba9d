"""Many small questions that may each hang in the kernel, answered by as few children as that takes."""

from __future__ import annotations

import mmap
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence

from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.trouble import FailureKind, trouble_of

BOARD_BYTES = 32 << 20  # shared with one child; the kernel gives pages only where something is written
MOST_HUNG = 8  # questions that may hang before the rest is given up: each costs its deadline
MOST_HUNG_OF_ONE = 2  # of those that are one user's, before the rest of that user's are given up

END = struct.Struct("<Q")  # where the next record goes; written last, so that a record is whole once it counts
RECORD = struct.Struct("<I?BI")  # which question, answered or not, the kind of failure, how many bytes


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that got no answer, and why in words; `hung` where it did not end in its time."""

    why: str
    hung: bool = False
    trouble: FailureKind = FailureKind.OTHER


Answer = bytes | Unanswered


class _Stalled(Exception):
    """One question has used up its deadline."""


def ask(
    questions: Sequence[Callable[[], bytes]], *, each: float, overall: float, owners: Sequence[int] = ()
) -> tuple[Answer, ...]:
    """Answer every question in a child, `each` seconds at most for one of them and `overall` for them all.

    A question that hangs costs a new child, not the answers of the others. Never raises for what a question does.
    `owners` are the users whom the questions are about: what one user lets hang is held against that user alone.
    """
    give_up = time.monotonic() + overall
    answers: list[Answer | None] = [None] * len(questions)
    hung = 0
    of_one: Counter[int] = Counter()
    while (first := _first_open(answers)) is not None:
        left = give_up - time.monotonic()
        if left <= 0 or (hung >= MOST_HUNG and not owners):
            break
        trouble = _one_child(questions, answers, first, min(each, left), left)
        if trouble is not None and (stuck := _first_open(answers)) is not None:
            answers[stuck] = trouble
            hung += 1
            if owners:
                of_one[owners[stuck]] += 1
                if of_one[owners[stuck]] >= MOST_HUNG_OF_ONE:
                    _give_up(answers, [number for number, owner in enumerate(owners) if owner == owners[stuck]])
    return tuple(Unanswered("not asked: too many others hung") if answer is None else answer for answer in answers)


def _give_up(answers: list[Answer | None], numbers: list[int]) -> None:
    for number in numbers:
        if answers[number] is None:
            answers[number] = Unanswered("not asked: too many others of the same user hung")


def _first_open(answers: list[Answer | None]) -> int | None:
    return next((number for number, answer in enumerate(answers) if answer is None), None)


def _one_child(
    questions: Sequence[Callable[[], bytes]], answers: list[Answer | None], first: int, seconds: float, overall: float
) -> Unanswered | None:
    """Let one child go through the questions from `first` on; return why it did not reach the end, if it did not."""
    with mmap.mmap(-1, BOARD_BYTES) as board:
        END.pack_into(board, 0, END.size)
        watch = _Watch(board, seconds)
        trouble = None
        try:
            left = [number for number in range(first, len(questions)) if answers[number] is None]
            collect(spawn(lambda: _work(board, questions, left)), overall, watch.tick)
        except (ChildTimedOut, _Stalled):
            trouble = Unanswered(f"no answer in {seconds:.1f} s", hung=True)
        except ChildFailed as error:
            trouble = Unanswered(str(error), trouble=error.trouble)
        _read_board(board, answers)
        return trouble


class _Watch:
    """Notices that the child has written nothing new for too long."""

    def __init__(self, board: mmap.mmap, seconds: float) -> None:
        self.board = board
        self.seconds = seconds
        self.written = 0
        self.since = time.monotonic()

    def tick(self) -> None:
        written = END.unpack_from(self.board)[0]
        if written != self.written:
            self.written = written
            self.since = time.monotonic()
        elif time.monotonic() - self.since >= self.seconds:
            raise _Stalled


def _work(board: mmap.mmap, questions: Sequence[Callable[[], bytes]], numbers: Sequence[int]) -> bytes:
    place = END.size
    for number in numbers:
        good, trouble = True, FailureKind.OTHER
        try:
            data = questions[number]()
        except Exception as error:  # noqa: BLE001 - one question's error must not cost the others their answers
            good, trouble = False, trouble_of(error)
            data = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        if place + RECORD.size + len(data) > BOARD_BYTES:
            good, data = False, b"the answers before it filled the board"
            if place + RECORD.size + len(data) > BOARD_BYTES:
                break
        RECORD.pack_into(board, place, number, good, trouble, len(data))
        place += RECORD.size
        board[place : place + len(data)] = data
        place += len(data)
        END.pack_into(board, 0, place)
    return b""


def _read_board(board: mmap.mmap, answers: list[Answer | None]) -> None:
    end = END.unpack_from(board)[0]
    place = END.size
    while place < end:
        number, good, trouble, length = RECORD.unpack_from(board, place)
        place += RECORD.size
        data = board[place : place + length]
        place += length
        answers[number] = data if good else Unanswered(data.decode("utf-8", "replace"), trouble=FailureKind(trouble))
