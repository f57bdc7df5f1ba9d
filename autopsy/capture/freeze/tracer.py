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
import os
import signal
import time
import traceback
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

from autopsy.bundle import proc_stat
from autopsy.bundle.records import Stop
from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.memory_copy import read_pages
from autopsy.capture.freeze.tracer_memory import STACK_CAP, Board, Caught, Fate
from autopsy.dataclass import dataclass
from autopsy.linux import ptrace
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping, parse_maps
from autopsy.linux.tasks.forking import Child, PipeEnds, end, ended, fork
from autopsy.linux.tasks.pagemap import IN_MEMORY, runs
from autopsy.linux.tasks.priority import Unpreempted

RELEASE_SECONDS = 25e-6  # to copy one thread's stack and let it go
OVERTIME = 1.25  # of the stop's time, after which it is over come what may
PREPARE_SECONDS = 2.0  # to list and seize some thousand threads; none of them stands
COROUTINE_STACK = (1 << 20) + PAGE  # of QEMU, guard page included: copied as far as it is used
RED_ZONE = 256  # twice what the ABI lets a function use below its stack pointer
PAUSE_SECONDS = 0.0001
PAUSE_PER_THREAD = 0.4e-6
QUIET_SECONDS = 0.001
D_SECONDS = 0.005  # a short disk wait ends within this; a longer one is not waited for
ROUNDS = 16
REHEARSALS = 3
POLL_SECONDS = 0.005
MARGIN_SECONDS = 0.02  # for the tracer's own timer to come first
REAP_SECONDS = 1.0
KERNELS_OWN = 0x200000 | 0x4000  # PF_KTHREAD, PF_USER_WORKER (Linux 6.3; before that tracing one is refused)

_libc = ctypes.PyDLL(None)
_mlock = _libc.mlock
_mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, slots=True)
class TracedStop:
    """What the tracer brought. `at_ns` is when the last thread stood; `stacks` are whole pages, in no order."""

    threads: tuple[Caught, ...]
    stacks: tuple[Chunk, ...]
    stop: Stop | None
    at_ns: int
    notes: tuple[str, ...]


def without_a_stop(tids: Iterable[int], why: str) -> TracedStop:
    """Return what stands for a stop that there was none of: each thread is read while it runs, where it can be."""
    threads = tuple(Caught(tid, Fate.MOVING, 0, 0, b"") for tid in tids)
    return TracedStop(threads, (), None, time.monotonic_ns(), (why,))


def hold(
    process: MappedProcess, stacks: tuple[Mapping, ...], max_stop: float, spared: frozenset[int] = frozenset()
) -> TracedStop:
    """Stop the process for an instant. `stacks` are the mappings in which a stack may be read, in order of address.

    The threads in `spared` are left alone.

    It takes `max_stop` seconds: threads that do not stand early enough for the others to be copied and let go in that
    time are given up. A quarter longer, and the stop is over, come what may.
    Concurrency: call it only from a process with one thread.
    """
    board = Board(len(os.listdir(f"{process.path}/task")))

    def trace(_: PipeEnds) -> int:
        try:
            _Tracer(board, process, stacks, max_stop, spared).run()
        except BaseException:  # noqa: BLE001 - its words are all that we will see of it
            board.say(traceback.format_exc())
        return 0

    gc.freeze()
    tracer = fork(trace)
    gc.unfreeze()
    notes = _await(tracer, board, OVERTIME * max_stop)
    if said := board.last_words():
        notes.append(f"the tracer failed: {said.strip().splitlines()[-1]}")
    words = board.words
    if words[Board.CROWDED]:
        notes.append("not every stack found room in the tracer's memory")
    stop = None
    if start := words[Board.START]:
        stop = Stop(start_ns=start, end_ns=words[Board.END] or time.monotonic_ns())
    # Where no thread could be stopped, the memory is read from now on.
    at_ns = words[Board.AT] or words[Board.START] or time.monotonic_ns()
    return TracedStop(board.threads(), board.pieces(), stop, at_ns, tuple(notes))


def _await(tracer: Child, board: Board, limit: float) -> list[str]:
    """Wait for the tracer's end, and bring it about if the tracer's own timer has not. Return what is worth telling."""
    began = time.monotonic()
    killed = False
    try:
        while (status := ended(tracer.pidfd, REAP_SECONDS if killed else POLL_SECONDS)) is None:
            if killed:
                return [f"the tracer, process {tracer.pid}, cannot be killed: it sleeps in the kernel"]
            now = time.monotonic()
            started = board.words[Board.START]
            if now - began > PREPARE_SECONDS or (started and now - started / 1e9 > limit + MARGIN_SECONDS):
                signal.pidfd_send_signal(tracer.pidfd, signal.SIGKILL)
                killed = True
    finally:
        end(tracer, seconds=0)
    if status >= 0:
        return []
    if status == -signal.SIGALRM:
        return ["the tracer's own timer ended it: the stop would have taken too long"]
    return ["the tracer was killed: " + ("its time was up" if killed else f"signal {-status}")]


class _Tracer:
    """The life of the tracer, which ends with `run`."""

    def __init__(
        self, board: Board, process: MappedProcess, stacks: tuple[Mapping, ...], max_stop: float, spared: frozenset[int]
    ) -> None:
        self.board = board
        self.words = board.words
        self.process = process
        self.tasks = f"{process.path}/task"
        self.starts = [mapping.start for mapping in stacks]
        self.ends = [mapping.end for mapping in stacks]
        self.max_stop = max_stop
        self.known = set(map(str, spared))
        self.registers = ptrace.RegisterReader(board.bytes)
        self.seized: list[tuple[int, int]] = []  # tid, row
        self.standing: list[tuple[int, int]] = []  # likewise
        self.stacks: list[tuple[int, tuple[tuple[int, int], ...]]] = []  # row, runs of pages

    def run(self) -> None:
        """Seize, interrupt, wait, copy, let go. Nothing may come after it but the process's end."""
        gc.disable()
        self._be_quick()
        newcomers = self._seize_newcomers()
        if not newcomers:
            return
        _run_before_others()
        signal.setitimer(signal.ITIMER_REAL, OVERTIME * self.max_stop)
        self.words[Board.START] = start = time.monotonic_ns()
        waiting = max(self.max_stop / 2, self.max_stop - len(newcomers) * RELEASE_SECONDS)
        deadline = start + int(waiting * 1e9)
        for _ in range(ROUNDS):
            for tid, _ in newcomers:
                ptrace.interrupt(tid)
            self._wait(deque(newcomers), deadline)
            # Whoever cloned a thread meanwhile stands now; a thread that it cloned may not be known yet.
            newcomers = self._seize_newcomers()
            if not newcomers or time.monotonic_ns() > deadline:
                break
        self.words[Board.AT] = time.monotonic_ns()
        self._copy_stacks()
        for tid, row in self.standing:
            ptrace.detach(tid, self.words[row + 2])
        self._let_latecomers_go()
        self.words[Board.END] = time.monotonic_ns()

    def _let_latecomers_go(self) -> None:
        """Free those that came to a stand after we had given them up: our end would, but takes a while."""
        for tid, row in self.seized:
            if self.words[row + 1] in {Fate.MOVING, Fate.ASLEEP}:
                match ptrace.stop_state(tid):
                    case ptrace.StoppedThread(signal=number):
                        ptrace.detach(tid, number)
                    case ptrace.Moving() | ptrace.ThreadGone():
                        pass

    def _be_quick(self) -> None:
        """Leave nothing for the stop that can be done before it: no page fault of ours, no wait for a CPU."""
        # SIGCHLD must not be ignored either: the kernel would then bury a tracee that dies, its real parent unheard.
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for offset in range(0, self.board.stacks_at, PAGE):
            self.board.bytes[offset] = 0
        for offset in range(0, min(self.board.stack_bytes, (2 * self.board.threads_expected + 32) * PAGE), PAGE):
            self.board.stacks[offset] = 0
        # Faults in and copies what the fork shares with our parent, and keeps it: a host short of memory, or one whose
        # root file system hangs, cannot make us wait for a page while the VM stands. What is shared with the parent on
        # purpose is there already, or is touched above.
        with open("/proc/self/maps", "rb") as stream:
            own = parse_maps(stream.read())
        for mapping in own:
            if mapping.permissions.startswith("r") and mapping.permissions.endswith("p"):
                _mlock(mapping.start, mapping.size)
        with Unpreempted():
            self._rehearse()

    def _rehearse(self) -> None:
        """Run what the stop will run, on no thread: what runs for the first time costs several times as much."""
        if not self.ends:
            return
        row = self.board.row(self.board.most_rows - 1)
        nobody = os.getpid()  # nobody can trace itself: every request is refused
        for _ in range(REHEARSALS):
            ptrace.interrupt(nobody)
            self._settled(nobody, row)
            time.sleep(0)
            self.registers.read(nobody, (row + Board.REGISTERS_AT) * 8)
            self.words[row + Board.REGISTERS_AT + ptrace.RSP] = self.ends[-1] - PAGE
            self._find_stack(row)
            os.listdir(self.tasks)
            self._copy_stacks()
            ptrace.detach(nobody, 0)
        self.stacks.clear()
        for word in (Board.PIECES, Board.USED, Board.CROWDED):
            self.words[word] = 0

    def _seize_newcomers(self) -> list[tuple[int, int]]:
        """Seize every thread that we have not met, but those that cannot stand still. Return them, in their rows."""
        newcomers: list[tuple[int, int]] = []
        for name in os.listdir(self.tasks):
            if name in self.known:
                continue
            self.known.add(name)
            index = self.words[Board.ROWS]
            if index == self.board.most_rows:
                self.words[Board.CROWDED] = 1
                break
            tid = int(name)
            row = self.board.row(index)
            self.words[row] = tid
            self.words[row + 1] = Fate.MOVING
            self.words[Board.ROWS] = index + 1
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
            elif not os.path.exists(f"{self.tasks}/{tid}"):
                # It ended before it was seized, and another process's thread has its number: it is left alone, and is
                # free again when we end.
                self.words[row + 1] = Fate.GONE
            else:
                newcomers.append((tid, row))
        self.seized += newcomers
        return newcomers

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
        fields = proc_stat.fields(stat)
        return fields[0].decode(), bool(int(fields[proc_stat.FLAGS - proc_stat.FIRST]) & KERNELS_OWN)

    def _wait(self, moving: deque[tuple[int, int]], deadline: int) -> None:
        """Copy the registers of each thread as it comes to a stand, until all stand or time is up.

        They were interrupted in this order and mostly come in it: to look at the first alone, until it has kept us
        waiting, keeps the number of looks near the number of threads. We sleep by the clock and not for SIGCHLD: to be
        woken at every stop takes the CPU from the threads that are still to come, and made the stop a fifth longer.
        """
        began = time.monotonic_ns()
        quiet = 0.0
        while moving:
            if self._settled(*moving[0]):
                moving.popleft()
                quiet = 0.0
                continue
            now = time.monotonic_ns()
            if quiet >= QUIET_SECONDS or now > deadline:
                moving = deque(thread for thread in moving if not self._settled(*thread))
                quiet = 0.0
            if now > deadline:
                return
            if now - began > D_SECONDS * 1e9 and not quiet:
                moving = deque(thread for thread in moving if not self._asleep(*thread))
            pause = PAUSE_SECONDS + len(moving) * PAUSE_PER_THREAD
            time.sleep(pause)
            quiet += pause

    def _settled(self, tid: int, row: int) -> bool:
        match ptrace.stop_state(tid):
            case ptrace.Moving():
                return False
            case ptrace.ThreadGone():
                self.words[row + 1] = Fate.GONE
            case ptrace.StoppedThread(signal=number):
                self.words[row + 2] = number
                self.standing.append((tid, row))
                if self.registers.read(tid, (row + Board.REGISTERS_AT) * 8):
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
        sp = self.words[row + Board.REGISTERS_AT + ptrace.RSP]
        index = bisect_right(self.starts, sp) - 1
        if index < 0 or sp >= self.ends[index]:
            return
        start = max(self.starts[index], (sp - RED_ZONE) & -PAGE)
        end = self.ends[index]
        if end - self.starts[index] > COROUTINE_STACK:
            end = min(end, start + STACK_CAP)
        self.stacks.append((row, tuple(runs(self.process.pagemap, start, end, IN_MEMORY))))

    def _copy_stacks(self) -> None:
        words = self.words
        board = self.board
        for row, pieces in self.stacks:
            for address, size in pieces:
                used = words[Board.USED]
                piece = words[Board.PIECES]
                if used + size > board.stack_bytes or piece == board.most_pieces:
                    words[Board.CROWDED] = 1
                    return
                copied = read_pages(self.process.memory, address, board.stacks[used : used + size])
                at = board.pieces_at + piece * Board.PIECE_WORDS
                words[at], words[at + 1], words[at + 2] = address, copied, used
                words[Board.USED] = used + copied
                words[Board.PIECES] = piece + 1
                words[row + 3] += copied
            words[row + 1] = Fate.HELD


def _run_before_others() -> None:
    """On a busy host a tracer that waits for a CPU keeps the VM standing; it has a few milliseconds to live."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
