"""Reads the registers and the stack of a thread that is not stopped, from /proc."""

from __future__ import annotations

import re
import struct
import time
from bisect import bisect_right
from collections.abc import Sequence

from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.memory_copy import read_pages
from autopsy.capture.freeze.tracer import RED_ZONE
from autopsy.capture.freeze.tracer_memory import STACK_CAP
from autopsy.capture.step import Deadline
from autopsy.dataclass import dataclass
from autopsy.linux import ptrace
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping
from autopsy.linux.tasks.pagemap import IN_MEMORY, runs
from autopsy.linux.tasks.priority import Unpreempted

TRIES = 5
BETWEEN_SECONDS = 0.001
LEAST_SECONDS = 1.0  # that are left of the step: the memory that was copied is still to be stored
USER_CS, USER_SS = 0x33, 0x2B  # of every 64-bit process

# `NR ARG… SP PC` in a system call, `-1 SP PC` asleep elsewhere (a page fault), or the word `running`.
_CALL = re.compile(rb"(-?\d+) ((?:0x[0-9a-f]+ ){6})?(0x[0-9a-f]+) (0x[0-9a-f]+)\n?")


@dataclass(frozen=True, slots=True)
class SleepingThread:
    """A sleeping thread's registers and stack: the same before and after the stack was copied."""

    registers: bytes
    stack: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class NeedsStop:
    """The thread cannot be read without a stop, and why."""

    why: str


def read_sleeping_thread(
    process: MappedProcess, tid: int, stacks: Sequence[Mapping], deadline: Deadline
) -> SleepingThread | NeedsStop:
    """Read a thread that sleeps; one that is on a CPU is tried a few times. `stacks` are in order of address."""
    if deadline.left() < LEAST_SECONDS:
        return NeedsStop("the time of the step was nearly up")
    why = ""
    for _ in range(TRIES):
        try:
            before = _call(process.path, tid)
        except OSError as error:
            return NeedsStop(f"its system call cannot be read: {error.strerror}")
        match = _CALL.fullmatch(before)
        if match is None:
            why = "it was running"
        elif not int(match[3], 16):
            return NeedsStop("it has no user registers")
        else:
            stack = copy_stack(process, int(match[3], 16), stacks)
            try:
                if _call(process.path, tid) == before:
                    return SleepingThread(_registers(match), stack)
            except OSError as error:
                return NeedsStop(f"its system call cannot be read: {error.strerror}")
            why = "it did not keep still while it was read"
        time.sleep(BETWEEN_SECONDS)
    return NeedsStop(why)


def _call(folder: str, tid: int) -> bytes:
    with open(f"{folder}/task/{tid}/syscall", "rb", buffering=0) as stream:
        return stream.read()


def _registers(match: re.Match[bytes]) -> bytes:
    """Return a user_regs_struct of what is known; an unwinder needs pc and sp, and finds the rest on the stack."""
    words = [0] * 27
    words[ptrace.ORIG_RAX] = int(match[1]) & (1 << 64) - 1
    if match[2]:
        places = (ptrace.RDI, ptrace.RSI, ptrace.RDX, ptrace.R10, ptrace.R8, ptrace.R9)
        for place, argument in zip(places, match[2].split(), strict=True):
            words[place] = int(argument, 16)
    words[ptrace.RSP] = int(match[3], 16)
    words[ptrace.RIP] = int(match[4], 16)
    words[ptrace.CS], words[ptrace.SS] = USER_CS, USER_SS
    return struct.pack("<27Q", *(word & (1 << 64) - 1 for word in words))


def copy_stack(process: MappedProcess, sp: int, stacks: Sequence[Mapping]) -> tuple[Chunk, ...]:
    """Return the pages of a stack that are in memory, from its stack pointer on; none where it lies in no mapping."""
    index = bisect_right(stacks, sp, key=lambda mapping: mapping.start) - 1
    if index < 0 or sp >= stacks[index].end:
        return ()
    start = max(stacks[index].start, (sp - RED_ZONE) & -PAGE)
    chunks = []
    with Unpreempted():
        for address, size in runs(process.pagemap, start, min(stacks[index].end, start + STACK_CAP), IN_MEMORY):
            data = memoryview(bytearray(size))
            chunks.append(Chunk(address, data[: read_pages(process.memory, address, data)]))
    return tuple(chunks)
