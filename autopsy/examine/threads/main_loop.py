"""Tell what the main thread was doing when it was frozen: idle in its loop, nested in another, blocked, or running."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from autopsy.bundle import layout, restarts
from autopsy.bundle.records import Frame, LockGraph, MainLoop
from autopsy.bundle.syscalls import POLLS, system_call
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import Core, CoreError, CoreThread
from autopsy.examine.states import ThreadState
from autopsy.examine.threads import lock_owners
from autopsy.examine.view import View

NT_PRPSINFO = 3
PRPSINFO_PID = struct.Struct("<I")
PRPSINFO_PID_AT = 24  # LP64

FREEZER = re.compile(r"do_freezer_trap|__refrigerator|cgroup_freez")
NESTED = "aio_poll"
LOOP = "main_loop_wait"
# What lies between main_loop_wait and the system call while the loop is at rest. They are static or the C library's, so
# that in a distribution's binary most are frames without a name.
RESTING = re.compile(
    r"os_host_main_loop_wait|qemu_poll_ns|g_poll|(__)?(GI_)?_*(GI___)?p?poll(64)?|main_loop_wait|__syscall\w*|__internal\w*|__libc_do_syscall"
)
COMMAND = re.compile(r"(?:qmp_marshal_|(?=qmp_|hmp_))([a-z_0-9]+)")
NO_COMMAND = re.compile(
    r"qmp_(marshal_)?(dispatch|error|command|init|capabilities$|is_|enable|disable)\w*|hmp_compat\w*"
)

AT_CALLS = frozenset({"openat", "newfstatat", "statx"})  # those of SYSTEM_CALLS whose second argument is a path
MOST_PATH = 4096
SOCKET_PATH = 108  # sizeof(sockaddr_un.sun_path)
FAMILY = struct.Struct("=H")  # of any sockaddr

State = Literal["idle", "nested poll", "blocked in a system call", "waits for a mutex", "running", "stopped", "unknown"]


@dataclass(frozen=True, slots=True)
class Activity:
    """What a thread does, and why we say so."""

    state: State
    why: str
    under: str = ""
    waits_for: int = 0
    waits_on_tid: int = 0


def examine_main_loop(view: View) -> MainLoop:
    """Write main-loop.json, and return what it says."""
    graph = lock_owners.of(view)
    tid = main_tid(view.core)
    frames = next((stack.frames for stack in view.threads if stack.tid == tid), ())
    thread = next((thread for thread in view.core.threads if thread.tid == tid), None)
    doing = what_it_does(thread, view.states().get(tid), frames, graph)
    record = MainLoop(
        tid=tid,
        state=doing.state,
        under=doing.under,
        waits_for=doing.waits_for,
        waits_on_tid=doing.waits_on_tid,
        why=doing.why,
        command=command_in(frames),
        path=_path(view.core, thread, doing),
    )
    view.frozen.write(layout.MAIN_LOOP, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return record


def _path(core: Core, thread: CoreThread | None, doing: Activity) -> str:
    """Return the file that a call such as openat or connect names, from QEMU's memory, empty where there is none."""
    if thread is None or doing.state != "blocked in a system call":
        return ""
    with suppress(CoreError):
        if doing.under in AT_CALLS:
            return core.string(thread.registers.rsi, MOST_PATH)
        if doing.under == "connect" and core.read(thread.registers.rsi, FAMILY.size) == FAMILY.pack(socket.AF_UNIX):
            return core.string(thread.registers.rsi + FAMILY.size, SOCKET_PATH)
    return ""


def main_tid(core: Core) -> int:
    """Return the process's first thread; the core's process note tells it, and else its first thread note."""
    for kind, body in core.note_bytes:
        if kind == NT_PRPSINFO and len(body) >= PRPSINFO_PID_AT + PRPSINFO_PID.size:
            (pid,) = PRPSINFO_PID.unpack_from(body, PRPSINFO_PID_AT)
            if any(thread.tid == pid for thread in core.threads):
                return int(pid)
    return core.threads[0].tid if core.threads else 0


def what_it_does(
    thread: CoreThread | None, task: ThreadState | None, frames: Sequence[Frame], graph: LockGraph
) -> Activity:
    """Judge the main thread by its state, its system call, its stack, and the BQL's owner."""
    if task and (why := _stopped_by(task)):
        return Activity("stopped", why)
    if thread is None:
        return Activity("unknown", "the core has no main thread")
    for mutex in graph.mutexes:
        if thread.tid in mutex.waiters:
            what = "the BQL" if mutex.is_bql else mutex.symbol or f"a mutex at {mutex.address:#x} ({mutex.place})"
            owner = f"thread {mutex.owner} ({mutex.owner_comm})" if mutex.owner else "nobody any more"
            return Activity(
                "waits for a mutex",
                f"it waits for {what}, which {owner} holds",
                under=function_that_waits(frames),
                waits_for=mutex.address,
                waits_on_tid=mutex.owner,
            )
    call = thread.registers.orig_rax
    name = system_call(call)
    if not name:
        return Activity("running", f"it was in no system call{_at(frames)}", under="")
    if call == restarts.X86_64 and task:
        name = restarts.interrupted([task.wchan]) or name
    if call in POLLS or (call == restarts.X86_64 and not _asleep_elsewhere(task)):
        return _polls(thread.tid, name, frames, graph)
    return _blocked(name, task, frames)


def _stopped_by(task: ThreadState) -> str:
    if task.state in ("T", "t"):
        return f"the thread's state is {task.state} ({'SIGSTOP' if task.state == 'T' else 'a tracer'})"
    if FREEZER.match(task.wchan):
        return f"it sleeps in {task.wchan}: its cgroup is frozen"
    return ""


def _polls(tid: int, name: str, frames: Sequence[Frame], graph: LockGraph) -> Activity:
    if nested := nested_under(frames):
        return Activity("nested poll", f"its stack has {NESTED} inside {nested}", under=nested)
    functions = [frame.function for frame in frames]
    if LOOP in functions:
        between = [
            function for function in functions[: functions.index(LOOP)] if function and not RESTING.fullmatch(function)
        ]
        if not between:
            return Activity("idle", f"it sleeps in {name} right under {LOOP}")
        return Activity("blocked in a system call", f"{between[-1]} polls outside the loop", under=name)
    # Without a stack: the loop drops the BQL around its poll, and a nested one keeps it.
    if not graph.bql_address:
        return Activity("unknown", f"it sleeps in {name}, its stack does not say under what, and the BQL was not found")
    if graph.bql_owner == tid:
        return Activity(
            "nested poll", f"it sleeps in {name} and holds the BQL, which the loop at rest would have dropped"
        )
    return Activity("idle", f"it sleeps in {name} and has dropped the BQL")


def _blocked(name: str, task: ThreadState | None, frames: Sequence[Frame]) -> Activity:
    where = f", in {task.wchan} in the kernel" if task and task.wchan not in ("", "0") else ""
    state = f", state {task.state}" if task and task.state else ""
    return Activity("blocked in a system call", f"it was in {name}{state}{where}{_at(frames)}", under=name)


def nested_under(frames: Sequence[Frame]) -> str:
    """Return the function that polls inside the loop: the first with a name outside the outermost aio_poll.

    An event loop of io_uring or epoll (QEMU 10.2's main loop among them) has no aio_poll in the main thread.
    """
    outermost = max((index for index, frame in enumerate(frames) if frame.function == NESTED), default=None)
    if outermost is None:
        return ""
    for frame in frames[outermost + 1 :]:
        if frame.function:
            return frame.function
    return "a function without a name"


def command_in(frames: Sequence[Frame]) -> str:
    """Return the QMP or HMP command that a stack is in: the innermost, so that HMP inside QMP is told by its name."""
    for frame in frames:
        if NO_COMMAND.fullmatch(frame.function):
            continue
        if command := COMMAND.fullmatch(frame.function):
            name = command[1]
            return name if name.startswith(("qmp_", "hmp_")) else f"qmp_{name}"
    return ""


def function_that_waits(frames: Sequence[Frame]) -> str:
    """Return the first function of QEMU's that is not the locking itself."""
    for frame in frames:
        name = frame.function
        if name and not re.search(r"lock|futex|mutex|syscall", name):
            return name
    return ""


def _at(frames: Sequence[Frame]) -> str:
    functions = [frame.function for frame in frames if frame.function][:3]
    return f": {' < '.join(functions)}" if functions else ""


def _asleep_elsewhere(task: ThreadState | None) -> bool:
    return task is not None and "poll" not in task.wchan and task.wchan not in ("", "0")
