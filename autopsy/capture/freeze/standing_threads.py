"""Reads the registers and stacks of the threads that stand still by themselves, with none of them stopped.

A walk over all threads, their stacks, another walk: who was off the CPU at both, and was not switched away from
meanwhile, has not run in between. All that one round proves stood still over one common instant, as in a stop. The few
that are left are looked at each alone, which takes no time in which they could run.
"""

from __future__ import annotations

from collections.abc import Sequence

from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.running_threads import copy_stack
from autopsy.capture.step import Deadline
from autopsy.dataclass import dataclass
from autopsy.linux.mappings import MappedProcess, Mapping
from autopsy.linux.ptrace import RSP
from autopsy.linux.tasks.walk import NoWalk, WalkedThread, Walker

ROUNDS = 5  # what runs in user mode is looked at again a few times
SHARE = (
    0.5  # of the step's time: on a starved host those that were reached by then are worth more than a step that ended
)
FEW, TRIES = 32, 16  # threads that are looked at alone, and how often each


@dataclass(frozen=True, slots=True)
class Stood:
    """One thread that is proven to have stood still while its stack was copied."""

    tid: int
    registers: bytes
    stack: tuple[Chunk, ...]


def stood_still(process: MappedProcess, stacks: Sequence[Mapping], deadline: Deadline) -> tuple[tuple[Stood, ...], str]:
    """Return the threads that stand still by themselves, and why there are none where the kernel does not let us look.

    `stacks` are the mappings in which a stack may be read, in order of address. A thread whose stack is in none of them
    is not among those returned.
    """
    try:
        walker = Walker(process.pid)
    except NoWalk as error:
        return (), f"threads are stopped for their registers, for the kernel lets none be walked: {error}"
    proven: dict[int, Stood] = {}
    until = Deadline(SHARE * deadline.left())
    try:
        before = walker.walk()
        unproven, alone_is_quicker = list(before), False
        for _ in range(ROUNDS):
            left = [seen for tid, seen in before.items() if tid not in proven and (not seen.on_cpu or seen.in_ioctl)]
            copied = _copied(process, left, stacks, until)
            after = walker.walk()
            for seen in left:
                later, stack = after.get(seen.tid), copied.get(seen.tid)
                if later is not None and seen.same(later) and stack:
                    proven[seen.tid] = Stood(seen.tid, seen.registers, stack)
            unproven = [tid for tid in after if tid not in proven]
            alone_is_quicker = walker.looks_at_one and len(unproven) <= FEW
            if not unproven or alone_is_quicker or until.expired():
                break
            before = after
        for tid in unproven if alone_is_quicker else ():
            if (alone := _stood_alone(walker, tid, process, stacks, until)) is not None:
                proven[tid] = alone
    except NoWalk as error:
        return tuple(proven.values()), f"the walk over the threads ended early: {error}"
    finally:
        walker.close()
    return tuple(proven.values()), ""


def _copied(
    process: MappedProcess, threads: Sequence[WalkedThread], stacks: Sequence[Mapping], until: Deadline
) -> dict[int, tuple[Chunk, ...]]:
    """Return the stacks of as many threads as there is time for."""
    copied = {}
    for seen in threads:
        if until.expired():
            break
        copied[seen.tid] = copy_stack(process, _sp(seen), stacks)
    return copied


def _stood_alone(
    walker: Walker, tid: int, process: MappedProcess, stacks: Sequence[Mapping], deadline: Deadline
) -> Stood | None:
    """Look at one thread until it stands still for as long as its stack takes.

    An idle main loop runs thirty times a second. While thousands of threads are walked it has always run in between.
    """
    for _ in range(TRIES):
        seen = walker.look_at(tid)
        if seen is None or deadline.expired():
            return None
        if seen.on_cpu and not seen.in_ioctl:
            continue
        copied = copy_stack(process, _sp(seen), stacks)
        later = walker.look_at(tid)
        if later is not None and seen.same(later) and copied:
            return Stood(tid, seen.registers, copied)
    return None


def _sp(seen: WalkedThread) -> int:
    return int.from_bytes(seen.registers[RSP * 8 : RSP * 8 + 8], "little")
