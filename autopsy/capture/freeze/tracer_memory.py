"""The memory in which a tracer leaves what it sees, so that it is there however the tracer ends."""

from __future__ import annotations

import mmap
from enum import IntEnum

from autopsy.capture.freeze.chunk import Chunk
from autopsy.dataclass import dataclass
from autopsy.linux import ptrace
from autopsy.linux.mappings import PAGE

STACK_CAP = 128 << 10  # of one thread's stack


class Fate(IntEnum):
    """What became of one thread."""

    MOVING = 1  # seized; had not come to a stand when time was up
    REFUSED = 2  # the kernel does not let us trace it: `detail` is the errno
    KERNEL = 3  # a thread of the kernel's own (vhost, io_uring, KVM's page recovery), listed among the process's
    ASLEEP = 4  # uninterruptibly: never touched, or let go again
    GONE = 5
    STANDING = 6  # its registers are copied; `detail` is the signal that it was about to take
    HELD = 7  # its stack too


@dataclass(frozen=True, slots=True)
class Caught:
    """One thread as the tracer found it."""

    tid: int
    fate: Fate
    detail: int
    stack_bytes: int
    registers: bytes


class Board:
    """The memory that the tracer writes to and we read: a header, a row for each thread, a row for each stack piece."""

    START, AT, END, ROWS, PIECES, USED, CROWDED = range(7)
    HEADER_WORDS = 16
    ROW_WORDS = 32
    REGISTERS_AT = 4  # in a row, after tid, fate, detail, stack bytes
    PIECE_WORDS = 3
    WORDS_BYTES = 1000  # of the tracer's last words

    def __init__(self, threads: int) -> None:
        self.threads_expected = threads
        self.most_rows = threads * 2 + 512
        self.most_pieces = self.most_rows * 4
        self.rows_at = self.HEADER_WORDS
        self.pieces_at = self.rows_at + self.most_rows * self.ROW_WORDS
        self.last_words_at = (self.pieces_at + self.most_pieces * self.PIECE_WORDS) * 8
        self.stacks_at = -(-(self.last_words_at + self.WORDS_BYTES) // PAGE) * PAGE
        self.stack_bytes = self.most_rows * STACK_CAP  # address space; only what is written to becomes memory
        self.bytes = memoryview(mmap.mmap(-1, self.stacks_at + self.stack_bytes))
        self.words = self.bytes[: self.stacks_at].cast("Q")
        self.stacks = self.bytes[self.stacks_at :]

    def row(self, index: int) -> int:
        """Return the word at which a thread's row begins."""
        return self.rows_at + index * self.ROW_WORDS

    def threads(self) -> tuple[Caught, ...]:
        """Return every thread that has a row."""
        threads = []
        for index in range(self.words[self.ROWS]):
            row = self.row(index)
            registers = (row + self.REGISTERS_AT) * 8
            threads.append(
                Caught(
                    tid=self.words[row],
                    fate=Fate(self.words[row + 1]),
                    detail=self.words[row + 2],
                    stack_bytes=self.words[row + 3],
                    registers=bytes(self.bytes[registers : registers + ptrace.REGISTER_BYTES]),
                )
            )
        return tuple(threads)

    def pieces(self) -> tuple[Chunk, ...]:
        """Return the stacks that were copied, without copying them again."""
        pieces = []
        for index in range(self.words[self.PIECES]):
            at = self.pieces_at + index * self.PIECE_WORDS
            address, size, offset = self.words[at : at + self.PIECE_WORDS]
            pieces.append(Chunk(address, self.stacks[offset : offset + size]))
        return tuple(pieces)

    def say(self, text: str) -> None:
        """Leave the end of a text for the parent."""
        words = text.encode("utf-8", "replace")[-self.WORDS_BYTES :]
        self.bytes[self.last_words_at : self.last_words_at + len(words)] = words

    def last_words(self) -> str:
        """Return what was said, empty if nothing."""
        said = bytes(self.bytes[self.last_words_at : self.last_words_at + self.WORDS_BYTES])
        return said.rstrip(b"\0").decode("utf-8", "replace")
