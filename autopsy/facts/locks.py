"""Who holds which mutex, and what the main thread is doing because of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from autopsy.bundle import layout, records
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.pid_namespaces import numbers
from autopsy.bundle.syscalls import POLL_CALLS
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import CoMutexFact, Locks, MainLoopFact, MutexFact, Role, ThreadFact, ThreadSnapshot

CoroutineState = Literal["running", "parked", "pooled", "unclear"]

LOCKS = layout.evidence(layout.GDB_THREADS, layout.LOCKS)
FUTEX_WAIT_PRIVATE = 0x80
LOCKED_WITH_WAITERS = 2
MUTEX_BYTES = 40


def gather_locks(
    evidence: Evidence, heap: Fact[heap_records.HeapSnapshot], threads: Fact[tuple[ThreadFact, ...]]
) -> Fact[Locks]:
    """Return the lock graph as it was examined; without that, what the futex words alone tell."""
    stored = decode(evidence, layout.GDB_THREADS, layout.LOCKS, records.LockGraph)
    if isinstance(stored, Known):
        graph = stored.value
        sure = (_without_doubt(mutex, graph.cycles) for mutex in graph.mutexes)
        mutexes = tuple(_mutex(mutex, heap) for mutex in sure if mutex.waiters)
        owner: Fact[int] = (
            Known(graph.bql_owner, Cite(LOCKS, 0, f"BQL found {graph.bql_how_found}"))
            if graph.bql_address
            else Unknown(LOCKS, "the BQL's address is not known: nobody waited for it, and no symbol names it")
        )
        comutexes = tuple(_comutexes(graph, evidence))
        return Known(
            Locks(mutexes=mutexes, cycles=graph.cycles, bql_owner=owner, cite=stored.cite, comutexes=comutexes),
            stored.cite,
        )
    waits = decode(evidence, layout.WITNESS, layout.FUTEXES, tuple[records.FutexWait, ...])
    if isinstance(waits, Unknown):
        return stored
    own = numbers(evidence.read(layout.evidence(layout.WITNESS, layout.TASKS)))
    meant = [msgspec.structs.replace(wait, owner=own.tid(wait.owner)) for wait in waits.value]
    return Known(_from_futexes(meant, waits.cite, threads), waits.cite)


def _without_doubt(mutex: records.Mutex, cycles: Sequence[tuple[int, ...]]) -> records.Mutex:
    """Return a mutex without its owner among those that wait for it, where no ring was built on that.

    A busy thread's registers and the lock's words are not of one moment: one that has just been given the lock looks as
    if it waited for itself, and no other look at it agrees.
    """
    if mutex.owner not in mutex.waiters or (mutex.owner,) in cycles:
        return mutex
    return msgspec.structs.replace(mutex, waiters=tuple(tid for tid in mutex.waiters if tid != mutex.owner))


def _mutex(mutex: records.Mutex, heap: Fact[heap_records.HeapSnapshot]) -> MutexFact:
    return MutexFact(
        address=mutex.address,
        owner=mutex.owner,
        kind=mutex.kind,
        waiters=mutex.waiters,
        place=mutex.place,
        name=mutex.symbol or ("the BQL" if mutex.is_bql else ""),
        is_bql=mutex.is_bql,
        in_object=_inside(mutex.address, heap),
        cite=Cite(LOCKS, 0, f"mutex {mutex.address:#x}, owner {mutex.owner}"),
    )


def _comutexes(graph: records.LockGraph, evidence: Evidence) -> Iterator[CoMutexFact]:
    """Yield the coroutine mutexes, with what became of each one's holder."""
    if not graph.comutexes:
        return  # the coroutines are many, and are read for their holders alone
    stored = decode(evidence, layout.GDB_THREADS, layout.COROUTINES, tuple[records.Coroutine, ...])
    states = {coroutine.address: coroutine.state for coroutine in stored.value} if isinstance(stored, Known) else {}
    tids = {entry.coroutine: entry.tid for entry in graph.entered}
    knotted = {address for ring in graph.knots for address in ring}
    for mutex in graph.comutexes:
        yield CoMutexFact(
            address=mutex.address,
            holder=mutex.holder,
            holder_state=_holder_state(mutex.holder, states) if isinstance(stored, Known) else "unclear",
            holder_tid=tids.get(mutex.holder, 0),
            waiters=mutex.waiters,
            in_knot=mutex.holder in knotted and not knotted.isdisjoint(mutex.waiters),
            cite=Cite(LOCKS, 0, f"CoMutex {mutex.address:#x}, holder {mutex.holder:#x}"),
        )


def _holder_state(holder: int, states: Mapping[int, CoroutineState]) -> CoroutineState | Literal["gone", "handed over"]:
    return states.get(holder, "gone") if holder else "handed over"


def _inside(address: int, heap: Fact[heap_records.HeapSnapshot]) -> str:
    """Name the heap object that a mutex lies in."""
    if isinstance(heap, Unknown):
        return ""
    for group in heap.value.throttle_groups:
        if group.lock.address <= address < group.lock.address + MUTEX_BYTES:
            return f"throttle group {group.name}"
    for device in heap.value.scsi_devices:
        if device.address <= address < device.address + device.size:
            return f"SCSI device {device.device}"
    return ""


def _from_futexes(waits: Sequence[records.FutexWait], cite: Cite, threads: Fact[tuple[ThreadFact, ...]]) -> Locks:
    """Read pthread mutexes straight from the words that threads sleep on."""
    roles = {thread.tid: thread.role for thread in threads.value} if isinstance(threads, Known) else {}
    mutexes: dict[int, MutexFact] = {}
    waits_on: dict[int, int] = {}
    for wait in waits:
        if wait.operation != FUTEX_WAIT_PRIVATE or wait.value != LOCKED_WITH_WAITERS:
            continue
        waiters = tuple(
            other.tid
            for other in waits
            if other.address == wait.address
            and other.operation == FUTEX_WAIT_PRIVATE
            and other.value == LOCKED_WITH_WAITERS
        )
        waits_on[wait.tid] = wait.owner
        mutexes[wait.address] = MutexFact(
            address=wait.address,
            owner=wait.owner,
            kind={0: "normal", 1: "recursive"}.get(wait.kind, "other"),
            waiters=waiters,
            place="",
            name="",
            # Nothing else in QEMU has a vCPU thread wait for it as a matter of course.
            is_bql=wait.kind == 0
            and sum(roles.get(tid) is Role.VCPU for tid in waiters) > 0
            and wait.owner not in waiters,
            in_object="",
            cite=Cite(cite.file, 0, f"thread {wait.tid} waits at {wait.address:#x}, owner {wait.owner}"),
        )
    bql = next((mutex for mutex in mutexes.values() if mutex.is_bql), None)
    owner: Fact[int] = (
        Known(bql.owner, bql.cite) if bql else Unknown(LOCKS, "the BQL's address is not known: no vCPU waited for it")
    )
    return Locks(mutexes=tuple(mutexes.values()), cycles=cycles(waits_on), bql_owner=owner, cite=cite)


def cycles(waits_on: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Return each ring of threads that wait for one another once, from its smallest tid."""
    rings: set[tuple[int, ...]] = set()
    for start in waits_on:
        path: list[int] = []
        at = start
        while at in waits_on and at not in path:
            path.append(at)
            at = waits_on[at]
        if at in path:
            ring = path[path.index(at) :]
            least = ring.index(min(ring))
            rings.add(tuple(ring[least:] + ring[:least]))
    return tuple(sorted(rings))


def main_loop(
    evidence: Evidence, threads: Fact[tuple[ThreadFact, ...]], locks: Fact[Locks], ours: str
) -> Fact[MainLoopFact]:
    """Return what the main thread was doing, as it was examined; without that, by /proc and the BQL's owner."""
    loop = decode(evidence, layout.GDB_THREADS, layout.MAIN_LOOP, records.MainLoop)
    if isinstance(loop, Known):
        seen = loop.value
        return Known(
            MainLoopFact(
                tid=seen.tid,
                state=seen.state,
                under=seen.under,
                waits_on_tid=seen.waits_on_tid,
                command=seen.command,
                ours=ours,
                why=seen.why,
                cite=Cite(loop.cite.file, 0, f"main thread {seen.tid}: {seen.state}"),
                path=seen.path,
            ),
            loop.cite,
        )
    main = (
        next((thread for thread in threads.value if thread.role is Role.MAIN), None)
        if isinstance(threads, Known)
        else None
    )
    if main is None or isinstance(main.first, Unknown):
        return loop
    return Known(_by_proc(main, main.first.value, locks, ours), main.first.value.cite)


def _by_proc(main: ThreadFact, seen: ThreadSnapshot, locks: Fact[Locks], ours: str) -> MainLoopFact:
    owner = locks.value.bql_owner if isinstance(locks, Known) else Unknown(LOCKS, "no lock graph")
    mutex = next((m for m in locks.value.mutexes if main.tid in m.waiters), None) if isinstance(locks, Known) else None
    state, under, why = "unknown", "", "its stack was not examined"
    if seen.state in {"T", "t"}:
        state, why = "stopped", f"State {seen.state}"
    elif seen.state == "D":
        state, under, why = "blocked in a system call", seen.syscall.name, f"State D in {seen.wchan or 'the kernel'}"
    elif seen.state == "S" and seen.syscall.name not in {"", "futex", "restart_syscall", *POLL_CALLS}:
        state, under = "blocked in a system call", seen.syscall.name
        why = f"State S in {under}, {seen.wchan or 'wchan unknown'}"
    elif mutex is not None:
        state, why = "waits for a mutex", f"futex {mutex.address:#x} is held by {mutex.owner}"
    elif seen.syscall.name in POLL_CALLS and isinstance(owner, Known):
        nested = owner.value == main.tid
        state = "nested poll" if nested else "idle"
        why = "it sleeps in poll and holds the BQL" if nested else "it sleeps in poll without the BQL"
    return MainLoopFact(
        tid=main.tid,
        state=state,  # type: ignore[arg-type]  # one of the words above
        under=under,
        waits_on_tid=mutex.owner if mutex else 0,
        command="",
        ours=ours,
        why=why,
        cite=seen.cite,
    )
