"""Holds every thread of a process at one moment, for as long as copying its registers and stacks takes.

It is done by a process of its own, the tracer, which keeps its notes in memory that it shares with us. However it ends,
the kernel then lets every thread go, and what it had noted is ours. It ends by itself: a kernel timer kills it when its
time is up, and so does its parent's death.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import select
import signal
import time
import traceback
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from autopsy.bundle.records import Stop
from autopsy.capture import ptrace
from autopsy.capture.child import die_with_parent
from autopsy.capture.memory import IN_MEMORY, PAGE, Mapping, parse_smaps, runs
from autopsy.capture.snapshot import Chunk, read_pages

PREPARE_SECONDS = 2.0  # to list and seize some thousand threads; none of them stands
STACK_CAP = 128 << 10
COROUTINE_STACK = (1 << 20) + PAGE  # of QEMU, guard page included: copied as far as it is used
RED_ZONE = 256  # twice what the ABI lets a function use below its stack pointer
QUIET_SECONDS = 0.001
D_SECONDS = 0.005  # a short disk wait ends within this; a longer one is not waited for
ROUNDS = 16
POLL_SECONDS = 0.005
REAP_SECONDS = 1.0
KERNELS_OWN = 0x200000 | 0x4000  # PF_KTHREAD, PF_USER_WORKER (Linux 6.3; before that tracing one is refused)

_libc = ctypes.PyDLL(None)
_mlock = _libc.mlock
_mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


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


@dataclass(frozen=True, slots=True)
class Cut:
    """What the tracer brought. `at_ns` is when the last thread stood; `stacks` are whole pages, in no order."""

    threads: tuple[Caught, ...]
    stacks: tuple[Chunk, ...]
    stop: Stop | None
    at_ns: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """The process at hand: its id, and descriptors of its mem and pagemap."""

    pid: int
    memory: int
    pagemap: int


class _Board:
    """The memory that the tracer writes to and we read: a header, a row for each thread, a row for each stack piece."""

    START, AT, END, ROWS, PIECES, USED, CROWDED = range(7)
    HEADER_WORDS = 16
    ROW_WORDS = 32
    REGISTERS_AT = 4  # in a row, after tid, fate, detail, stack bytes
    PIECE_WORDS = 3
    WORDS_BYTES = 1000  # of the tracer's last words

    def __init__(self, threads: int) -> None:
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
        return self.rows_at + index * self.ROW_WORDS

    def threads(self) -> tuple[Caught, ...]:
        found = []
        for index in range(self.words[self.ROWS]):
            row = self.row(index)
            registers = (row + self.REGISTERS_AT) * 8
            found.append(
                Caught(
                    tid=self.words[row],
                    fate=Fate(self.words[row + 1]),
                    detail=self.words[row + 2],
                    stack_bytes=self.words[row + 3],
                    registers=bytes(self.bytes[registers : registers + ptrace.REGISTER_BYTES]),
                )
            )
        return tuple(found)

    def pieces(self) -> tuple[Chunk, ...]:
        found = []
        for index in range(self.words[self.PIECES]):
            at = self.pieces_at + index * self.PIECE_WORDS
            address, size, offset = self.words[at : at + self.PIECE_WORDS]
            found.append(Chunk(address, self.stacks[offset : offset + size]))
        return tuple(found)

    def say(self, text: str) -> None:
        words = text.encode("utf-8", "replace")[-self.WORDS_BYTES :]
        self.bytes[self.last_words_at : self.last_words_at + len(words)] = words

    def last_words(self) -> str:
        said = bytes(self.bytes[self.last_words_at : self.last_words_at + self.WORDS_BYTES])
        return said.rstrip(b"\0").decode("utf-8", "replace")


def hold(process: Process, stacks: tuple[Mapping, ...], max_stop: float) -> Cut:
    """Stop the process for an instant. `stacks` are the mappings in which a stack may be read, in order of address.

    Threads that do not stand after `max_stop` seconds are let go; in twice that time the stop is over, come what may.
    Concurrency: call it only from a process with one thread.
    """
    board = _Board(len(os.listdir(f"/proc/{process.pid}/task")))
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        try:
            _Tracer(board, process, stacks, max_stop).run()
        except BaseException:  # noqa: BLE001 - its words are all that we will see of it
            board.say(traceback.format_exc())
        finally:
            os._exit(0)
    gc.unfreeze()
    notes = list(_await(pid, board, 2 * max_stop))
    if said := board.last_words():
        notes.append(f"the tracer failed: {said.strip().splitlines()[-1]}")
    words = board.words
    if words[_Board.CROWDED]:
        notes.append("not every stack found room in the tracer's memory")
    stop = None
    if start := words[_Board.START]:
        stop = Stop(start_ns=start, end_ns=words[_Board.END] or time.monotonic_ns())
    return Cut(board.threads(), board.pieces(), stop, words[_Board.AT] or words[_Board.START], tuple(notes))


def _await(pid: int, board: _Board, limit: float) -> list[str]:
    """Wait for the tracer's end, and bring it about if the tracer's own timer has not. Return what is worth telling."""
    notes: list[str] = []
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        began = time.monotonic()
        killed_at = 0.0
        while not poller.poll(POLL_SECONDS * 1000):
            now = time.monotonic()
            if killed_at:
                if now - killed_at > REAP_SECONDS:
                    return [*notes, f"the tracer, process {pid}, cannot be killed: it sleeps in the kernel"]
                continue
            started = board.words[_Board.START]
            if now - began > PREPARE_SECONDS or (started and now - started / 1e9 > limit + POLL_SECONDS):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                killed_at = now
                notes.append("the tracer was killed: its time was up")
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        notes.append("the tracer's own timer ended it: the stop would have taken too long")
    elif os.WIFSIGNALED(status) and not killed_at:
        notes.append(f"the tracer was killed by signal {os.WTERMSIG(status)}")
    return notes


class _Tracer:
    """The life of the tracer, which ends with `run`."""

    def __init__(self, board: _Board, process: Process, stacks: tuple[Mapping, ...], max_stop: float) -> None:
        die_with_parent()
        self.board = board
        self.words = board.words
        self.process = process
        self.tasks = f"/proc/{process.pid}/task"
        self.starts = [each.start for each in stacks]
        self.ends = [each.end for each in stacks]
        self.max_stop = max_stop
        self.known: set[str] = set()
        self.registers = ptrace.RegisterReader(board.bytes)
        self.standing: list[tuple[int, int]] = []  # tid, row
        self.stacks: list[tuple[int, tuple[tuple[int, int], ...]]] = []  # row, runs of pages

    def run(self) -> None:
        """Seize, interrupt, wait, copy, let go. Nothing may come after it but the process's end."""
        gc.disable()
        self._be_quick()
        ptrace.hold_child_signals()
        newcomers = self._seize_newcomers()
        if not newcomers:
            return
        _run_before_others()
        signal.setitimer(signal.ITIMER_REAL, 2 * self.max_stop)
        self.words[_Board.START] = start = time.monotonic_ns()
        deadline = start + int(self.max_stop * 1e9)
        for _ in range(ROUNDS):
            for tid, _ in newcomers:
                ptrace.interrupt(tid)
            self._wait(deque(newcomers), deadline)
            # Whoever cloned a thread meanwhile stands now; a thread that it cloned may not be known yet.
            newcomers = self._seize_newcomers()
            if not newcomers or time.monotonic_ns() > deadline:
                break
        self.words[_Board.AT] = time.monotonic_ns()
        for row, pieces in self.stacks:
            self._copy_stack(row, pieces)
        for tid, row in self.standing:
            ptrace.detach(tid, self.words[row + 2])
        self.words[_Board.END] = time.monotonic_ns()

    def _be_quick(self) -> None:
        """Leave nothing for the stop that can be done before it: no page fault of ours, no wait for a CPU."""
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        pages = min(self.board.stack_bytes, self.board.most_rows * 2 * PAGE)
        for offset in range(0, pages, PAGE):
            self.board.stacks[offset] = 0
        # Faults in and copies what the fork shares with our parent, and keeps it: a host short of memory, or one whose
        # root file system hangs, cannot make us wait for a page while the VM stands. What is shared with the parent on
        # purpose is there already, or is touched above.
        with open("/proc/self/maps", "rb") as stream:
            own = parse_smaps(stream.read())
        for each in own:
            if each.permissions.startswith("r") and each.permissions.endswith("p"):
                _mlock(each.start, each.size)

    def _seize_newcomers(self) -> list[tuple[int, int]]:
        """Seize every thread that we have not met, but those that cannot stand still. Return them, in their rows."""
        found: list[tuple[int, int]] = []
        for name in os.listdir(self.tasks):
            if name in self.known:
                continue
            self.known.add(name)
            index = self.words[_Board.ROWS]
            if index == self.board.most_rows:
                self.words[_Board.CROWDED] = 1
                break
            tid = int(name)
            row = self.board.row(index)
            self.words[row] = tid
            self.words[row + 1] = Fate.MOVING
            self.words[_Board.ROWS] = index + 1
            state, kernels_own = self._state(tid)
            if kernels_own:
                self.words[row + 1] = Fate.KERNEL
            elif state == "D":
                self.words[row + 1] = Fate.ASLEEP
            elif state in {"", "Z", "X"}:
                self.words[row + 1] = Fate.GONE
            elif error := ptrace.seize(tid):
                self.words[row + 1] = Fate.GONE if error == errno.ESRCH else Fate.REFUSED
                self.words[row + 2] = error
            else:
                found.append((tid, row))
        return found

    def _state(self, tid: int) -> tuple[str, bool]:
        """Return a thread's state (empty: it has gone), and whether it is one of the kernel's own."""
        try:
            descriptor = os.open(f"{self.tasks}/{tid}/stat", os.O_RDONLY)
        except OSError:
            return "", False
        try:
            stat = os.read(descriptor, 512)
        except OSError:
            return "", False
        finally:
            os.close(descriptor)
        fields = stat[stat.rfind(b")") + 2 :].split(None, 7)  # state ppid pgrp session tty tpgid flags
        return fields[0].decode(), bool(int(fields[6]) & KERNELS_OWN)

    def _wait(self, moving: deque[tuple[int, int]], deadline: int) -> None:
        """Copy the registers of each thread as it comes to a stand, until all stand or time is up.

        They were interrupted in this order and mostly come in it: looking at the first alone, until nothing has come
        for a while, keeps the number of looks near the number of threads.
        """
        began = time.monotonic_ns()
        while moving:
            if self._settled(*moving[0]):
                moving.popleft()
                continue
            now = time.monotonic_ns()
            if now > deadline:
                return
            if ptrace.next_stop(QUIET_SECONDS):
                continue
            moving = deque(each for each in moving if not self._settled(*each))
            if now - began > D_SECONDS * 1e9:
                moving = deque(each for each in moving if not self._asleep(*each))

    def _settled(self, tid: int, row: int) -> bool:
        match ptrace.look(tid):
            case ptrace.Moving():
                return False
            case ptrace.Gone():
                self.words[row + 1] = Fate.GONE
            case ptrace.Standing(signal=number):
                self.words[row + 2] = number
                self.standing.append((tid, row))
                if self.registers.read(tid, (row + _Board.REGISTERS_AT) * 8):
                    self.words[row + 1] = Fate.STANDING
                    self._find_stack(row)
        return True

    def _asleep(self, tid: int, row: int) -> bool:
        if self._state(tid)[0] != "D":
            return False
        self.words[row + 1] = Fate.ASLEEP  # it stays seized, and is free again when we end
        return True

    def _find_stack(self, row: int) -> None:
        """Find the used part of a standing thread's stack: its pages that are in memory, so that no fault is taken.

        What is swapped out, or lies beyond the cap, is in the first copy.
        """
        sp = self.words[row + _Board.REGISTERS_AT + ptrace.RSP]
        index = bisect_right(self.starts, sp) - 1
        if index < 0 or sp >= self.ends[index]:
            return
        start = max(self.starts[index], (sp - RED_ZONE) & -PAGE)
        end = self.ends[index]
        if end - self.starts[index] > COROUTINE_STACK:
            end = min(end, start + STACK_CAP)
        self.stacks.append((row, tuple(runs(self.process.pagemap, start, end, IN_MEMORY))))

    def _copy_stack(self, row: int, pieces: tuple[tuple[int, int], ...]) -> None:
        words = self.words
        for address, size in pieces:
            used = words[_Board.USED]
            piece = words[_Board.PIECES]
            if used + size > self.board.stack_bytes or piece == self.board.most_pieces:
                words[_Board.CROWDED] = 1
                return
            copied = read_pages(self.process.memory, address, self.board.stacks[used : used + size])
            at = self.board.pieces_at + piece * _Board.PIECE_WORDS
            words[at], words[at + 1], words[at + 2] = address, copied, used
            words[_Board.USED] = used + copied
            words[_Board.PIECES] = piece + 1
            words[row + 3] += copied
        words[row + 1] = Fate.HELD


def _run_before_others() -> None:
    """On a busy host a tracer that waits for a CPU keeps the VM standing; it has a few milliseconds to live."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
