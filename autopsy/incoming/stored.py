"""Turns what was read out of a text into the files that a capture's steps leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, Frame, LockGraph, Mutex, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.threads.lock_owners import mutex_kind
from autopsy.examine.threads.wait_cycles import cycles
from autopsy.incoming.stacks import frames_say
from autopsy.incoming.stacks.pasted import LockWait, Paste, PastedDump, PrintedMutex
from autopsy.incoming.stacks.render import render, stack

BQL = frozenset({"qemu_global_mutex", "bql"})
BQL_CALLS = frozenset({"qemu_mutex_lock_iothread_impl", "qemu_mutex_lock_iothread", "bql_lock_impl", "bql_lock"})
OF_QEMU = (
    *("qemu_", "bdrv_", "blk_", "aio_", "kvm_", "virtio_", "vhost_", "main_loop", "os_host_main_loop_wait", "qmp_"),
    *("memory_region_", "coroutine_", "migration_", "multifd_", "iothread_", "call_rcu_thread", "job_", "block_job_"),
    *("monitor_", "vnc_", "scsi_", "nbd_", "qcow2_", "rcu_", "synchronize_rcu", "drain_call_rcu", "bql_", "colo_"),
    *("laio_", "luring_", "handle_aiocb", "worker_thread", "throttle_", "hmp_", "pci_", "cpu_exec", "ide_", "ahci_"),
)
PROGRAMS = ("qemu", "kvm")
OF_NOBODY = (
    "no function of QEMU's is among the frames: its symbols were not at hand, or this is another program's backtrace"
)
NAMELESS = 1  # stands for an address that nobody printed


@dataclass(frozen=True, slots=True)
class Stored:
    """The files, by their path inside the bundle, and which thread is the main one."""

    files: Mapping[str, bytes]
    main: int
    notes: tuple[str, ...]


def stored(paste: Paste) -> Stored:
    """Return the evidence of a paste. Its first look is the one that is judged; its last says what moved."""
    if not paste.looks:
        return Stored({}, 0, ())
    first = render(paste.looks[0])
    last = paste.looks[-1] if len(paste.looks) > 1 else None
    look = first.look
    files: dict[str, bytes] = {
        layout.BACKTRACE: first.text.encode("utf-8", "replace"),
        layout.THREADS: _json(look.threads),
    }
    if look.coroutines:
        coroutines = tuple(_with_later(coroutine, last) for coroutine in look.coroutines)
        text, coroutines = _listing(coroutines)
        files[layout.COROUTINES] = _json(coroutines)
        files[layout.COROUTINES_TEXT] = text.encode("utf-8", "replace")
    main = frames_say.main_thread(look.threads)
    thread = next((thread for thread in look.threads if thread.tid == main), None)
    if thread is not None and not _moved(thread, last):
        files[layout.MAIN_LOOP] = _json(frames_say.main_loop(thread))
    graph, notes = _locks(look, paste.printed)
    stacks = (*(thread.frames for thread in look.threads), *(coroutine.frames for coroutine in look.coroutines))
    if not any(map(_is_of_qemu, stacks)):
        notes = (*notes, OF_NOBODY)
    if graph.mutexes:
        files[layout.LOCKS] = _json(graph)
    stored_files = {layout.evidence(layout.GDB_THREADS, name): data for name, data in files.items()}
    if last is not None:
        again = render(last)
        for name, data in (
            (layout.BACKTRACE, again.text.encode("utf-8", "replace")),
            (layout.THREADS, _json(again.look.threads)),
        ):
            stored_files[layout.evidence(layout.SECOND_EXPOSURE, name)] = data
    return Stored(stored_files, main, notes)


def _moved(thread: ThreadStack, last: PastedDump | None) -> bool:
    """Tell whether a later look shows a thread somewhere else: what it did at the first one is over."""
    later = next((again for again in last.threads if again.tid == thread.tid), None) if last else None
    return later is not None and _functions(later) != _functions(thread)


def _functions(thread: ThreadStack) -> list[str]:
    return [frame.function for frame in thread.frames]


def _is_of_qemu(frames: Sequence[Frame]) -> bool:
    return any(frame.function.startswith(OF_QEMU) or any(name in frame.module for name in PROGRAMS) for frame in frames)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _with_later(coroutine: Coroutine, last: PastedDump | None) -> Coroutine:
    """Say what became of a coroutine between the looks, where the last one shows coroutines at all."""
    if last is None or not last.coroutines:
        return coroutine
    for later in last.coroutines:
        if later.address == coroutine.address:
            same = later.frames == coroutine.frames
            return msgspec.structs.replace(coroutine, since_first="stuck" if same else "moved")
    return coroutine  # it may only not have been pasted again


def _listing(coroutines: Sequence[Coroutine]) -> tuple[str, tuple[Coroutine, ...]]:
    lines: list[str] = []
    numbered = []
    for coroutine in coroutines:
        numbered.append(msgspec.structs.replace(coroutine, line=len(lines) + 1))
        lines += [f"coroutine {coroutine.address:#x}", *stack(coroutine.frames), ""]
    return "\n".join(lines), tuple(numbered)


def _locks(look: PastedDump, printed: Sequence[PrintedMutex]) -> tuple[LockGraph, tuple[str, ...]]:
    """Return the mutexes whose owner somebody printed, and of whose identity there is no doubt."""
    waits = {wait.tid: wait for wait in look.waits}
    names = {thread.tid: thread.comm for thread in look.threads}
    mutexes: dict[int, Mutex] = {}
    notes = []
    for shown in printed:
        waiters = tuple(_waiters(shown, look.threads, waits))
        if not waiters:
            notes.append(f"`{shown.expression}` showed owner {shown.owner}: which thread waits for that cannot be told")
            continue
        is_bql = _is_bql(shown.expression)
        addresses = [waits[tid].address for tid in waiters if tid in waits and waits[tid].address]
        address = addresses[0] if addresses else NAMELESS + len(mutexes)
        mutexes[address] = Mutex(
            address=address,
            owner=shown.owner,
            owner_comm=names.get(shown.owner, ""),
            kind=mutex_kind(shown.kind),
            count=shown.count,
            waiters=waiters,
            is_bql=is_bql,
            symbol=shown.expression if shown.expression.isidentifier() else "",
        )
    bql = next((mutex for mutex in mutexes.values() if mutex.is_bql), None)
    waits_on = {tid: mutex.owner for mutex in mutexes.values() for tid in mutex.waiters}
    return (
        LockGraph(
            mutexes=tuple(mutexes.values()),
            others=(),
            cycles=cycles(waits_on),
            bql_address=bql.address if bql else 0,
            bql_owner=bql.owner if bql else 0,
            bql_how_found="by the name that it was printed by" if bql else "",
        ),
        tuple(notes),
    )


def _is_bql(expression: str) -> bool:
    return expression.strip("*&()").partition(".")[0].partition("->")[0] in BQL


def _waiters(printed: PrintedMutex, threads: Sequence[ThreadStack], waits: Mapping[int, LockWait]) -> Iterator[int]:
    """Yield the threads that wait for the mutex that was printed: by its address, its symbol, or as the BQL."""
    words = printed.expression.replace("(", " ").replace(")", " ").replace("*", " ").replace("&", " ").split()
    for thread in threads:
        wait = waits.get(thread.tid)
        if wait is None:
            continue
        for_bql = any(frame.function in BQL_CALLS for frame in thread.frames[:8])
        named = bool(wait.symbol) and wait.symbol in words
        addressed = bool(wait.address) and f"{wait.address:#x}" in (word.lower() for word in words)
        if named or addressed or (for_bql and _is_bql(printed.expression)):
            yield thread.tid
