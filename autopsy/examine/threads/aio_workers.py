"""Take a census of the threads that do blocking I/O: how many there are, and what each was at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Frame, LockGraph, WorkerThread
from autopsy.bundle.syscalls import system_call
from autopsy.examine.core.reader import CoreThread
from autopsy.examine.states import ThreadState
from autopsy.examine.threads import lock_owners
from autopsy.examine.view import View

KERNEL = re.compile(r"iou-(wrk|sqp)-\d+")
POOL = "worker"  # what QEMU calls a thread of its pool
LOOP = "worker_thread"  # its function, static, named where symbols are
WORK = re.compile(r"handle_aiocb_\w+|aio_worker|qcow2_\w+|.*_pool_func")


def examine_aio_workers(view: View) -> tuple[WorkerThread, ...]:
    """Write workers.json, and return what it says."""
    workers = tuple(census(view, lock_owners.of(view)))
    view.frozen.write(layout.WORKERS, msgspec.json.format(msgspec.json.encode(workers), indent=1) + b"\n")
    return workers


def census(view: View, graph: LockGraph) -> Iterator[WorkerThread]:
    """Yield every worker, in order of tid."""
    known = view.states()
    stacks = {stack.tid: stack for stack in view.threads}
    threads = {thread.tid: thread for thread in view.core.threads}
    for tid in sorted(known.keys() | threads.keys()):
        task = known.get(tid, ThreadState(tid))
        stack = stacks.get(tid)
        frames = stack.frames if stack else ()
        comm = task.comm or (stack.comm if stack else "")
        if KERNEL.fullmatch(comm):
            yield WorkerThread(tid=tid, comm=comm, doing="in the kernel", state=task.state, wchan=task.wchan)
        elif tid in threads and (comm == POOL or any(frame.function == LOOP for frame in frames)):
            yield _worker(threads[tid], task, comm, frames, graph)


def _worker(
    thread: CoreThread, task: ThreadState, comm: str, frames: Sequence[Frame], graph: LockGraph
) -> WorkerThread:
    call = system_call(thread.registers.orig_rax)
    function = next((frame.function for frame in frames if WORK.fullmatch(frame.function)), "")
    base = WorkerThread(
        tid=thread.tid,
        comm=comm,
        doing="running",
        call=call,
        state=task.state,
        wchan=task.wchan,
        function=function,
    )
    if any(thread.tid in mutex.waiters for mutex in graph.mutexes):
        return msgspec.structs.replace(base, doing="waits for a mutex")
    if any(thread.tid == other.tid and other.kind == "condition or semaphore" for other in graph.others):
        return msgspec.structs.replace(base, doing="idle" if not function else "in a system call")
    return msgspec.structs.replace(base, doing="in a system call") if call else base
