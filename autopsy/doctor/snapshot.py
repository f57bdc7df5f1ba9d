"""Takes a snapshot of a process of our own as a capture takes it of a VM: without a stop, with one, from the kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import msgspec

from autopsy.capture.freeze.phases import Phases
from autopsy.capture.freeze.snapshot import MemorySnapshot, ProcessGone, take_snapshot, tasks
from autopsy.capture.freeze.step import unsupported
from autopsy.capture.step import Deadline
from autopsy.doctor.checks import Check, lacks, note, ok
from autopsy.doctor.own_process import sleeping_process
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.tasks.present_memory import opened_memory
from autopsy.linux.tasks.walk import TYPES
from autopsy.target.permissions import explain, guards_of

SECONDS = 10.0
MOST_STOP = 0.050
WITHOUT_STOP = "snapshot without a stop"
WITH_STOP = "snapshot with a stop"
KERNEL_STACKS = "kernel stacks"
FUNCTION = re.compile(rb"\[<[0-9a-f]*>\] \w")


def try_snapshots() -> tuple[Check, ...]:
    """Return whether threads can be read without a stop, stopped for a moment, and followed into the kernel."""
    try:
        with sleeping_process() as pid:
            return (_tried(WITHOUT_STOP, _walk, pid), _tried(WITH_STOP, _stop, pid), _tried(KERNEL_STACKS, _stack, pid))
    except OSError as error:
        return (lacks(WITHOUT_STOP, f"no process could be started: {error}"),)


def _tried(name: str, attempt: Callable[[int], Check], pid: int) -> Check:
    """Try it in a child: what is tried may hang, and the tracer wants a process of one thread."""
    try:
        answer = in_child(lambda: msgspec.json.encode(attempt(pid)), SECONDS)
    except (ChildTimedOut, ChildFailed) as error:
        return lacks(name, str(error))
    return msgspec.json.decode(answer, type=Check)


def _walk(pid: int) -> Check:
    try:
        taken = _taken(pid, walks=True)
    except (OSError, ProcessGone) as error:
        return _refused(WITHOUT_STOP, pid, error)
    if any(thread.how == "walked" for thread in taken.frozen_threads):
        return ok(WITHOUT_STOP, f"a task iterator (BPF) read a sleeping thread; {_megabytes(taken)} copied")
    why = "; ".join(taken.notes) or "the thread was not read by the walk"
    types = "" if os.path.exists(TYPES) else f" ({TYPES} is not there: a kernel without BTF)"
    return note(
        WITHOUT_STOP, f"{why}{types}", "each thread is stopped for 25 µs instead; CAP_BPF and CAP_PERFMON let us"
    )


def _stop(pid: int) -> Check:
    if why := unsupported(pid):
        return lacks(WITH_STOP, why, "`capture --live-gdb` attaches gdb instead")
    try:
        taken = _taken(pid, walks=False)
    except (OSError, ProcessGone) as error:
        return _refused(WITH_STOP, pid, error)
    if any(thread.how == "stopped" for thread in taken.frozen_threads):
        return ok(WITH_STOP, f"ptrace held a thread for {taken.stop_ns / 1e6:.2f} ms and let it go")
    return lacks(
        WITH_STOP, "; ".join(thread.why for thread in taken.frozen_threads) or "no thread was stopped", _remedy(pid)
    )


def _stack(pid: int) -> Check:
    try:
        with open(f"/proc/{pid}/stack", "rb") as stream:
            stack = stream.read(1 << 16)
    except OSError as error:
        return lacks(KERNEL_STACKS, f"/proc/PID/stack: {error.strerror}", "run as root, or with CAP_SYS_ADMIN")
    if FUNCTION.search(stack):
        return ok(KERNEL_STACKS, "/proc/PID/stack names the functions that a thread sleeps in")
    return lacks(KERNEL_STACKS, "/proc/PID/stack is empty", "a kernel with CONFIG_STACKTRACE; no container without it")


def _taken(pid: int, *, walks: bool) -> MemorySnapshot:
    folder = f"/proc/{pid}"
    with opened_memory(pid, folder) as process:
        known = tasks(pid, folder)
        return take_snapshot(
            process, known, Phases(), ram_sizes=(), max_stop=MOST_STOP, deadline=Deadline(SECONDS / 2), walks=walks
        )


def _refused(name: str, pid: int, error: OSError | ProcessGone) -> Check:
    if not isinstance(error, PermissionError):
        return lacks(name, str(error))
    reason, remedy = explain(guards_of(pid))
    return lacks(
        name, f"the kernel lets us into no process of another parent{f' ({reason})' if reason else ''}", remedy
    )


def _remedy(pid: int) -> str:
    return explain(guards_of(pid))[1]


def _megabytes(taken: MemorySnapshot) -> str:
    return f"{taken.copied_bytes / 1e6:.0f} MB"
