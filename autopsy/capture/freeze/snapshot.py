"""Takes one snapshot of a process: its memory while it runs, its registers and stacks in an instant."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from autopsy.bundle import proc_stat
from autopsy.bundle.records import FreezeRecord, FrozenThread
from autopsy.capture.freeze import running_threads
from autopsy.capture.freeze.choose_pages import CAP_BYTES, Choice, address_space, choose
from autopsy.capture.freeze.chunk import Chunk, Present
from autopsy.capture.freeze.core_writer import ThreadRegisters
from autopsy.capture.freeze.memory_copy import SWAP_SECONDS, Snapshot
from autopsy.capture.freeze.phases import Phases
from autopsy.capture.freeze.standing_threads import Stood, stood_still
from autopsy.capture.freeze.tracer import TracedStop, hold, without_a_stop
from autopsy.capture.freeze.tracer_memory import Caught, Fate
from autopsy.capture.step import Deadline
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import Core
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping
from autopsy.linux.ptrace import RSP
from autopsy.linux.tasks.walk import KERNELS_OWN

ARCHITECTURE = "x86_64"
MOST_TORN = 4096  # pages that are listed one by one
WRITE_SECONDS = (
    0.5  # and three times what the first copy took: with less time left the core is worth more than a second
)

# A wait for the lock of the memory map: the semaphore's slow path, under what changes, looks up or faults in mappings.
# The same semaphore guards inodes, where a thread that waits for it is no reason not to stop.
_SEMAPHORE = re.compile(r"\b(?:rwsem_|down_(?:read|write))")
_OF_THE_MAP = re.compile(
    r"\b\w*(?:mmap|munmap|mprotect|madvise|mremap|mlock|brk|lock_mm|user_addr_fault|exc_page_fault|get_user_pages"
    r"|gup_|pin_user|access_remote_vm|process_vm_rw|userfaultfd|exit_mm|dup_mm)"
)


class ProcessGone(Exception):
    """The process ended while it was looked at."""


@dataclass(frozen=True, slots=True)
class ThreadBefore:
    """One thread before anything was done to it."""

    tid: int
    comm: str
    state: str


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """What was taken. `chunks` are in order of address and do not overlap; `threads` begin with the main thread.

    `present` are the pages that the process had, of which `chunks` has all, or those that differ from an earlier core.
    `release` gives a part's memory back once it is stored.
    """

    mappings: tuple[Mapping, ...]
    choice: Choice
    cut: TracedStop
    threads: tuple[ThreadRegisters, ...]
    frozen_threads: tuple[FrozenThread, ...]
    chunks: tuple[Chunk, ...]
    present: tuple[Present, ...]
    release: Callable[[int, int], None]
    copied_bytes: int
    torn: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def stop_ns(self) -> int:
        """Return how long the process stood still."""
        return 0 if self.cut.stop is None else self.cut.stop.end_ns - self.cut.stop.start_ns

    def record(self, phases: Phases, core_bytes: int = 0) -> FreezeRecord:
        """Return what the bundle says of it."""
        notes = (*self.notes, *self.cut.notes)
        if len(self.torn) > MOST_TORN:
            notes = (*notes, f"{len(self.torn)} pages changed while they were copied; {MOST_TORN} are listed")
        return FreezeRecord(
            architecture=ARCHITECTURE,
            page_size=PAGE,
            frozen_at_ns=self.cut.at_ns,
            stops=() if self.cut.stop is None else (self.cut.stop,),
            threads=self.frozen_threads,
            left_out=self.choice.left_out,
            beyond_cap=self.choice.beyond_cap,
            coroutine_stacks=self.choice.coroutine_stacks,
            copied_bytes=self.copied_bytes,
            core_bytes=core_bytes,
            torn_pages=self.torn[:MOST_TORN],
            phases_ms=phases.ms,
            notes=notes,
        )


def tasks(pid: int, folder: str) -> tuple[ThreadBefore, ...]:
    """Return the threads of a process, the main thread first.

    `folder` is its /proc/PID. The files that are read take no lock of the memory map.

    Raises:
        ProcessGone: there is none.
    """
    threads = []
    try:
        tids = sorted(map(int, os.listdir(f"{folder}/task")))
    except OSError as error:
        raise ProcessGone(f"process {pid} is gone") from error
    for tid in sorted(tids, key=lambda tid: (tid != pid, tid)):
        with contextlib.suppress(OSError, ValueError):
            stat = proc_stat.parse(_read(f"{folder}/task/{tid}/stat"))
            if stat.state:
                threads.append(ThreadBefore(tid, stat.comm, stat.state))
    return tuple(threads)


def take_snapshot(
    process: MappedProcess,
    known: tuple[ThreadBefore, ...],
    phases: Phases,
    *,
    ram_sizes: tuple[int, ...],
    max_stop: float,
    deadline: Deadline,
    walks: bool = True,
    base: Core | None = None,
    cap: int = CAP_BYTES,
) -> MemorySnapshot:
    """Expose a process once, without the guest RAM that `ram_sizes` tell of.

    With `walks`, whoever stands still by itself is not stopped. With a `base`, pages that it holds just so are
    not kept. Beyond `cap` bytes what matters least is given up.

    Raises:
        ProcessGone: it ended meanwhile.
        OSError: its maps cannot be read.
    """
    mappings, ram = address_space(process.path, ram_sizes)
    phases.done("maps")
    choice = choose(mappings, ram, process.pagemap, process.memory, cap)
    phases.done("pagemap")
    snapshot = Snapshot(process, choice.wanted, min(SWAP_SECONDS, deadline.left() / 4), base)
    phases.done("copy before")
    stacks = _stacks(choice)
    stood, no_walk = stood_still(process, stacks, deadline) if walks else ((), "")
    if not os.path.exists(f"{process.path}/stat"):  # the walk knew it by its number alone
        raise ProcessGone(f"process {process.pid} has ended")
    walked_ns = time.monotonic_ns()
    phases.done("walk")
    cut, why = _stopped(process, known, stacks, stood, max_stop)
    phases.done("stop")
    comms = {task.tid: task.comm for task in known}
    if any(caught.tid not in comms for caught in cut.threads):
        comms = {task.tid: task.comm for task in tasks(process.pid, process.path)} | comms
    threads, frozen, read_after = _threads(process, cut, stacks, deadline, comms, ram_sizes=ram_sizes, not_stopped=why)
    walked, walked_frozen, their_stacks = _walked(stood, comms)
    threads = sorted(threads + walked, key=lambda thread: (thread.tid != process.pid, thread.tid))
    frozen = sorted(frozen + walked_frozen, key=lambda thread: (thread.tid != process.pid, thread.tid))
    read_after += their_stacks
    if cut.stop is None and stood:
        cut = replace(cut, at_ns=walked_ns)
    starved = not threads
    if starved and all(task.state in "ZX" for task in tasks(process.pid, process.path)):
        raise ProcessGone(f"no thread of process {process.pid} could be read: it has ended, or is ending")
    phases.done("threads that were not stopped")
    pieces = (*cut.stacks, *read_after)
    notes = [*snapshot.notes, *([no_walk] if no_walk else [])]
    if starved:
        notes.append(
            "no thread came to a stop in time and none slept: do they get no CPU? The memory was taken all the same"
        )
    torn: list[int] = []
    if deadline.left() > WRITE_SECONDS + 3 * phases.ms["copy before"] / 1000:
        torn = snapshot.torn(frozenset(page for piece in pieces for page in range(piece.address, piece.end, PAGE)))
    else:
        notes.append("memory was not read a second time, for want of time: torn pages are not known")
    phases.done("copy after")
    extra = list(snapshot.lay_over(pieces))
    return MemorySnapshot(
        mappings=mappings,
        choice=choice,
        cut=cut,
        threads=tuple(threads),
        frozen_threads=tuple(frozen),
        chunks=tuple(_blanked(_apart([*snapshot.chunks(), *extra]), *_environment(process.path))),
        present=tuple(sorted((*snapshot.present, *extra), key=lambda chunk: chunk.address)),
        release=snapshot.release,
        copied_bytes=snapshot.size + sum(len(chunk.data) for chunk in extra),
        torn=tuple(torn),
        notes=tuple(notes),
    )


def _stopped(
    process: MappedProcess,
    known: tuple[ThreadBefore, ...],
    stacks: tuple[Mapping, ...],
    stood: tuple[Stood, ...],
    max_stop: float,
) -> tuple[TracedStop, str]:
    """Stop those that are not proven to stand still by themselves, and say why where that must not be, or cannot."""
    spared = frozenset(thread.tid for thread in stood)
    left = [task for task in known if task.tid not in spared]
    waiting = [task for task in known if task.state == "D" and _waits_for_the_map(process.path, task.tid)]
    if waiting:
        names = ", ".join(f"{task.tid} ({task.comm})" for task in waiting[:4])
        why = f"not stopped, for the lock of the memory map is waited for by {names}: a stop could have become long"
        return without_a_stop((task.tid for task in left), why), why
    if stood and (others := _only_the_kernels(process.path, spared)) is not None:
        return TracedStop(others, (), None, time.monotonic_ns(), ()), ""
    try:
        cut = hold(process, stacks, max_stop, spared)
        if cut.threads or not left:
            return cut, ""
        why = f"not stopped: {'; '.join(cut.notes)}"  # on a starved host its time was up before it had listed them
    except OSError as error:  # a host that cannot even fork has a memory worth looking at
        why = f"not stopped, for there could be no tracer: {error.strerror}"
    return without_a_stop((task.tid for task in left), why), why


def _only_the_kernels(folder: str, spared: frozenset[int]) -> tuple[Caught, ...] | None:
    """Return the threads beside those that are spared if all are the kernel's own, and there is nobody to stop."""
    kernels = []
    try:
        for name in os.listdir(f"{folder}/task"):
            if int(name) not in spared:
                flags = proc_stat.fields(_read(f"{folder}/task/{name}/stat"))[proc_stat.FLAGS - proc_stat.FIRST]
                if not int(flags) & KERNELS_OWN:
                    return None
                kernels.append(Caught(int(name), Fate.KERNEL, 0, 0, b""))
    except (OSError, ValueError, IndexError):
        return None
    return tuple(kernels)


def _walked(
    stood: Iterable[Stood], comms: dict[int, str]
) -> tuple[list[ThreadRegisters], list[FrozenThread], list[Chunk]]:
    """Return those that stood still by themselves as `_threads` returns the others."""
    threads = [ThreadRegisters(thread.tid, thread.registers) for thread in stood]
    frozen = [
        _told(thread, comms.get(asleep.tid, ""), "walked", sum(len(chunk.data) for chunk in asleep.stack))
        for asleep, thread in zip(stood, threads, strict=True)
    ]
    return threads, frozen, [chunk for thread in stood for chunk in thread.stack]


def _stacks(choice: Choice) -> tuple[Mapping, ...]:
    """Return where a stack may lie: never in memory that was left out."""
    return tuple(want.mapping for want in choice.wanted if "w" in want.mapping.permissions)


def _apart(chunks: list[Chunk]) -> Iterable[Chunk]:
    """Yield the chunks in order of address, without what an earlier one holds already."""
    last = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.address):
        start = max(last, chunk.address)
        if start < chunk.end:
            yield Chunk(start, chunk.data[start - chunk.address :])
            last = chunk.end


def _environment(folder: str) -> tuple[int, int]:
    """Return where the kernel put the environment, at the top of the main thread's stack (proc_pid_stat(5)).

    It is as likely as not to hold a secret, and no frame lies in it.
    """
    with contextlib.suppress(OSError):
        return proc_stat.parse(_read(f"{folder}/stat")).environment  # zeros where we may not know
    return 0, 0


def _blanked(chunks: Iterable[Chunk], start: int, end: int) -> Iterable[Chunk]:
    """Yield the chunks with zeros from `start` to `end`."""
    for chunk in chunks:
        first, last = max(start, chunk.address), min(end, chunk.end)
        if first >= last:
            yield chunk
            continue
        data = bytearray(chunk.data)
        data[first - chunk.address : last - chunk.address] = bytes(last - first)
        yield Chunk(chunk.address, memoryview(data))


def _threads(
    process: MappedProcess,
    cut: TracedStop,
    stacks: tuple[Mapping, ...],
    deadline: Deadline,
    comms: dict[int, str],
    *,
    ram_sizes: tuple[int, ...],
    not_stopped: str,
) -> tuple[list[ThreadRegisters], list[FrozenThread], list[Chunk]]:
    """Return every thread as the core has it and as the record tells it, and the stacks that are read only now."""
    threads: list[ThreadRegisters] = []
    frozen: list[FrozenThread] = []
    pieces: list[Chunk] = []
    for caught in sorted(cut.threads, key=lambda caught: (caught.tid != process.pid, caught.tid)):
        comm = comms.get(caught.tid, "")
        if caught.fate is Fate.HELD:
            threads.append(ThreadRegisters(caught.tid, caught.registers))
            frozen.append(_told(threads[-1], comm, "stopped", caught.stack_bytes))
            continue
        why = not_stopped or _why(process.path, caught)
        if caught.fate in {Fate.GONE, Fate.KERNEL}:
            frozen.append(FrozenThread(tid=caught.tid, comm=comm, how="absent", why=why))
            continue
        if caught.fate is Fate.STANDING and not _within(stacks, _sp(caught.registers)):
            with contextlib.suppress(OSError):  # the thread is younger than the maps that we have
                stacks = _stacks(choose(*address_space(process.path, ram_sizes), process.pagemap, process.memory))
        match running_threads.read_sleeping_thread(process, caught.tid, stacks, deadline):
            case running_threads.SleepingThread(registers=registers, stack=stack):
                threads.append(ThreadRegisters(caught.tid, registers))
                pieces += stack
                frozen.append(_told(threads[-1], comm, "from-proc", sum(len(chunk.data) for chunk in stack), why))
            case running_threads.NeedsStop(why=reason) if caught.fate is Fate.STANDING:
                threads.append(ThreadRegisters(caught.tid, caught.registers))
                frozen.append(_told(threads[-1], comm, "stopped", 0, f"{why}; {reason}"))
            case running_threads.NeedsStop(why=reason):
                frozen.append(FrozenThread(tid=caught.tid, comm=comm, how="absent", why=f"{why}; {reason}"))
    return threads, frozen, pieces


def _told(
    thread: ThreadRegisters, comm: str, how: Literal["walked", "stopped", "from-proc"], size: int, why: str = ""
) -> FrozenThread:
    start = _sp(thread.registers) & -PAGE if size else 0
    return FrozenThread(tid=thread.tid, comm=comm, how=how, why=why, stack_start=start, stack_bytes=size)


def _why(folder: str, caught: Caught) -> str:  # noqa: PLR0911 - one answer for each fate
    match caught.fate:
        case Fate.MOVING:
            return "it did not come to a stand in the time that a stop may take"
        case Fate.REFUSED:
            return _who_traces(folder, caught)
        case Fate.KERNEL:
            return "a thread of the kernel's own"
        case Fate.ASLEEP:
            return "uninterruptible sleep (D): it cannot be stopped"
        case Fate.GONE:
            return "it ended meanwhile"
        case Fate.STANDING:
            return "its stack was not copied in the stop"
        case Fate.HELD:
            return ""


def _who_traces(folder: str, caught: Caught) -> str:
    with contextlib.suppress(OSError, ValueError):
        status = _read(f"{folder}/task/{caught.tid}/status")
        tracer = int(status.partition(b"\nTracerPid:")[2].split(None, 1)[0])
        if tracer:
            comm = _read(f"/proc/{tracer}/comm").decode("utf-8", "replace").strip()
            return f"process {tracer} ({comm}) traces it already"
    return (
        f"the kernel does not let us trace it: {os.strerror(caught.detail)} ({errno.errorcode.get(caught.detail, '?')})"
    )


def _waits_for_the_map(folder: str, tid: int) -> bool:
    """Return whether a thread waits for the lock of the memory map, by its kernel stack, or its wchan without one."""
    try:
        stack = _read(f"{folder}/task/{tid}/stack").decode("ascii", "replace")
    except OSError:
        stack = ""
    if stack:
        return bool(_SEMAPHORE.search(stack) and _OF_THE_MAP.search(stack))
    with contextlib.suppress(OSError):
        # The semaphore's functions are hidden from wchan; what called them shows.
        return bool(_OF_THE_MAP.search(_read(f"{folder}/task/{tid}/wchan").decode("ascii", "replace")))
    return False


def _within(stacks: Sequence[Mapping], sp: int) -> bool:
    index = bisect_right(stacks, sp, key=lambda mapping: mapping.start) - 1
    return index >= 0 and sp < stacks[index].end


def _sp(registers: bytes) -> int:
    return int.from_bytes(registers[RSP * 8 : RSP * 8 + 8], "little")


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()
