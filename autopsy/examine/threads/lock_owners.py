"""Tell who waits for whom: the owner graph of every mutex that a thread sleeps on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.futex_words import MUTEX_BYTES, futex_wait
from autopsy.bundle.pid_namespaces import Numbers, numbers
from autopsy.bundle.records import FutexWait, LockGraph, Mutex, OtherWait
from autopsy.bundle.syscalls import FUTEX
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.previous import NOTHING, Earlier
from autopsy.examine.states import freeze_record
from autopsy.examine.threads.bql import find_bql, is_mutex
from autopsy.examine.threads.wait_cycles import cycles, with_coroutines
from autopsy.examine.view import View

OWNER_OFFSET = 8
FUTEX_WAIT_BITSET = 9
COMMAND = 0x7F  # without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
EVENT_BUSY = 0xFFFFFFFF  # QemuEvent's EV_BUSY
HOST_NUMBERS = Numbers()

MutexKind = Literal["normal", "recursive", "errorcheck", "other"]
WaitKind = Literal["condition or semaphore", "event", "rwlock or other"]


@dataclass(frozen=True, slots=True)
class Waits:
    """Every thread's futex sleep. `doubtful` are the tids whose sleep two looks at the VM do not agree on."""

    by_tid: Mapping[int, FutexWait]
    doubtful: frozenset[int]


def examine_locks(view: View, earlier: Earlier = NOTHING) -> LockGraph:
    """Write locks.json, and return what it says."""
    graph = earlier.best_graph(of(view))
    view.frozen.write(layout.LOCKS, msgspec.json.format(msgspec.json.encode(graph), indent=1) + b"\n")
    return graph


def of(view: View) -> LockGraph:
    """Return who waits for whom in the frozen process."""
    if view.graph is not None:
        return view.graph
    comms = {tid: task.comm for tid, task in view.states().items()}
    comms |= {thread.tid: thread.comm for thread in view.threads if thread.comm}
    own = numbers(view.frozen.read(layout.evidence(layout.WITNESS, layout.TASKS)))
    graph = lock_graph(view.core, view.symbols, futex_waits(view), comms, own)
    return with_coroutines(graph, view.core, view.symbols, view.saved, view.left_out)


def lock_graph(
    core: Core, symbols: Symbols, sleeps: Waits, comms: dict[int, str], own: Numbers = HOST_NUMBERS
) -> LockGraph:
    """Return who waits for whom. `own` tells which threads the owners in the mutexes' words are."""
    mutex_waits = {tid: wait for tid, wait in sleeps.by_tid.items() if is_mutex(wait)}
    bql = find_bql(symbols, mutex_waits.values(), comms)
    alive = {thread.tid for thread in core.threads}
    notes = [
        f"thread {tid} waits for a mutex, but not in every look at it: no cycle is built on that"
        for tid in sorted(sleeps.doubtful & mutex_waits.keys())
    ]
    by_address: dict[int, list[FutexWait]] = {}
    for wait in mutex_waits.values():
        by_address.setdefault(wait.address, []).append(wait)
    mutexes = []
    for address, waiters in sorted(by_address.items()):
        written = waiters[0].owner
        owner = own.tid(written)
        if written and owner not in alive:
            notes.append(f"the mutex at {address:#x} says that {written} owns it, which is no thread of this process")
        mutexes.append(
            Mutex(
                address=address,
                owner=owner,
                owner_comm=comms.get(owner, ""),
                kind=mutex_kind(waiters[0].kind),
                count=waiters[0].count,
                waiters=tuple(sorted(wait.tid for wait in waiters)),
                place=symbols.place(address) or "heap",
                is_bql=address == bql.address,
                symbol=symbols.variable(address),
            )
        )
    return LockGraph(
        mutexes=tuple(mutexes),
        others=tuple(
            OtherWait(tid=tid, address=wait.address, kind=wait_kind(wait), place=symbols.place(wait.address) or "heap")
            for tid, wait in sorted(sleeps.by_tid.items())
            if tid not in mutex_waits
        ),
        cycles=cycles({tid: own.tid(wait.owner) for tid, wait in mutex_waits.items() if tid not in sleeps.doubtful}),
        bql_address=bql.address,
        bql_owner=own.tid(_owner(core, bql.address)),
        bql_how_found=bql.how,
        notes=tuple(notes),
    )


def futex_waits(view: View) -> Waits:
    """Return every futex sleep: by the core, which is one moment, and by the witness where a thread was not stopped.

    The core's heap was copied just before its registers: a mutex that was free in between can look as if its waiter
    held it. On a wedged VM every look agrees, so a look that does not makes the sleep doubtful.
    """
    stopped = _stopped(view, layout.FREEZE, view.core)
    by_core = core_waits(view.core, stopped)
    looks: list[tuple[frozenset[int], Mapping[int, FutexWait]]] = []
    by_witness = witness_waits(view.frozen.read)
    if by_witness is not None:
        looks.append((stopped, by_witness))
    if view.second is not None:
        again = _stopped(view, layout.SECOND_EXPOSURE, view.second)
        looks.append((again, core_waits(view.second, again)))
    together = {tid: wait for tid, wait in (by_witness or {}).items() if tid not in stopped} | by_core
    doubtful = {
        tid for tid, wait in together.items() for seen, look in looks if tid in seen and not _agree(wait, look.get(tid))
    }
    return Waits(together, frozenset(doubtful))


def _stopped(view: View, step: str, core: Core) -> frozenset[int]:
    """Return the threads whose registers were read while they stood still; without a freeze.json, all of them."""
    threads = freeze_record(view.frozen.read, step).threads
    if not threads:
        return frozenset(thread.tid for thread in core.threads)
    return frozenset(thread.tid for thread in threads if thread.how in {"walked", "stopped"})


def core_waits(core: Core, trusted: AbstractSet[int]) -> dict[int, FutexWait]:
    """Return the futex sleeps that a core's registers tell of, for threads whose registers are all there."""
    waits: dict[int, FutexWait] = {}
    for thread in core.threads:
        registers = thread.registers
        if registers.orig_rax != FUTEX or thread.tid not in trusted:
            continue
        words = _bytes(core, registers.rdi)
        operation, value = registers.rsi & 0xFFFFFFFF, registers.rdx & 0xFFFFFFFF
        waits[thread.tid] = futex_wait(thread.tid, registers.rdi, operation, value, words)
    return waits


def witness_waits(read: Callable[[str], bytes]) -> dict[int, FutexWait] | None:
    """Return the futex sleeps that the witness saw, None when there was none to see them."""
    data = read(layout.evidence(layout.WITNESS, layout.FUTEXES))
    try:
        seen = msgspec.json.decode(data, type=tuple[FutexWait, ...])
    except msgspec.DecodeError:
        return None
    return {wait.tid: msgspec.structs.replace(wait, value=wait.value & 0xFFFFFFFF) for wait in seen}


def mutex_kind(kind: int) -> MutexKind:
    """Return what sort of mutex glibc's kind says (PTHREAD_MUTEX_*_NP and its flags)."""
    kinds: tuple[MutexKind, ...] = ("normal", "recursive", "errorcheck", "normal")  # the last is "adaptive"
    return kinds[kind & 3] if 0 <= kind < 1 << 10 else "other"


def wait_kind(wait: FutexWait) -> WaitKind:
    """Return what else than a mutex a thread waits for."""
    if wait.operation & COMMAND == FUTEX_WAIT_BITSET:
        return "condition or semaphore"
    if wait.operation & COMMAND == 0 and wait.value == EVENT_BUSY:
        return "event"
    return "rwlock or other"


def _agree(one: FutexWait, other: FutexWait | None) -> bool:
    if other is None or (one.address, one.operation, one.value) != (other.address, other.operation, other.value):
        return False
    return one.owner == other.owner or not other.words  # a look that could not read the words does not gainsay


def _bytes(core: Core, address: int) -> bytes:
    try:
        return core.read(address, MUTEX_BYTES)
    except CoreError:
        return b""


def _owner(core: Core, mutex: int) -> int:
    try:
        return core.int32(mutex + OWNER_OFFSET) if mutex else 0
    except CoreError:
        return 0
