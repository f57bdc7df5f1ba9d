"""Tells from frames alone which thread is the main one, and what it was doing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autopsy.bundle.records import Frame, MainLoop, ThreadStack
from autopsy.bundle.syscalls import NAMES
from autopsy.examine.threads.main_loop import RESTING, State, command_in, function_that_waits, nested_under
from autopsy.incoming.stacks.lock_arguments import is_locking

LOOPS = ("main_loop_wait", "qemu_main_loop", "main_loop", "main", "qemu_default_main", "os_host_main_loop_wait")
STARTS = frozenset({"start_thread", "clone", "clone3", "__clone", "__clone3", "qemu_thread_start", "thread_start"})
POLLS = frozenset({"ppoll", "__ppoll", "poll", "__poll", "epoll_wait", "epoll_pwait", "select", "pselect"})
SLEEPS = frozenset(
    """
    futex_wait __futex_abstimed_wait_common64 __futex_abstimed_wait_common __futex_abstimed_wait_cancelable64
    futex_wait_cancelable futex_abstimed_wait_cancelable pthread_cond_wait __pthread_cond_wait ___pthread_cond_wait
    pthread_cond_timedwait __pthread_cond_timedwait ___pthread_cond_timedwait pthread_cond_clockwait
    __pthread_cond_wait_common pthread_join __pthread_join __pthread_clockjoin_ex __pthread_timedjoin_ex sem_wait
    sem_timedwait do_futex_wait __new_sem_wait_slow futex_abstimed_wait __pthread_clockjoin do_sem_wait syscall
    """.split()  # noqa: SIM905 - words read best as words
)
ENTRY = re.compile(r"__(?:internal_)?syscall_c\w*|__libc_do_syscall|__kernel_vsyscall|_dl_sysinfo_int80|sccp")
PROCESSES = ("qemu", "kvm", "main")  # how QEMU calls its main thread
CALLS = frozenset(NAMES.values())
BARE = ("libc_", "__", "_")


def main_thread(threads: Sequence[ThreadStack]) -> int:
    """Return the main thread's number, 0 where nothing tells which it is.

    It is the one in `main` or the main loop; else the first of the process, if its stack begins in no thread's start:
    gdb shows the main thread where nobody asks for another one.
    """
    for thread in threads:
        names = {frame.function for frame in thread.frames}
        if names.intersection(LOOPS) and not names & STARTS:
            return thread.tid
    first = min(threads, key=lambda thread: thread.tid, default=None)
    if first is None or (first.comm and not first.comm.startswith(PROCESSES)):
        return 0
    names = {frame.function for frame in first.frames}
    return 0 if names & STARTS else first.tid


def main_loop(thread: ThreadStack) -> MainLoop:
    """Return what the main thread was doing."""
    state, under, why = _doing(thread.frames)
    return MainLoop(tid=thread.tid, state=state, under=under, why=why, command=command_in(thread.frames))


def _doing(frames: Sequence[Frame]) -> tuple[State, str, str]:
    names = [frame.function for frame in frames]
    names = names[next((at for at, name in enumerate(names) if not ENTRY.fullmatch(name)), 0) :]
    if any(is_locking(name) for name in names[:4]):
        return "waits for a mutex", function_that_waits(frames), "its innermost frames take a mutex"
    if nested := nested_under(frames):
        return "nested poll", nested, f"its stack has aio_poll inside {nested}"
    if names and system_call(names[0]) in POLLS and "main_loop_wait" in names:
        between = [name for name in names[: names.index("main_loop_wait")] if name and not RESTING.fullmatch(name)]
        if not between:
            return "idle", "", f"it is in {names[0]} right under main_loop_wait"
    call = "futex" if names and names[0] in SLEEPS else ""
    call = call or next((call_ for name in names[:3] if (call_ := system_call(name))), "")
    if call:
        return "blocked in a system call", call, f"its innermost frame is {names[0]}"
    if names and names[0]:
        return "running", "", f"its innermost frame is {names[0]}"
    return "unknown", "", "its innermost frame has no name"


def system_call(function: str) -> str:
    """Return the system call that a function of the C library is, empty where it is none."""
    if function in CALLS:
        return function
    bare = function
    for start in BARE:
        bare = bare.removeprefix(start)
    bare = bare.removesuffix("64").removesuffix("_nocancel") if bare not in CALLS else bare
    return bare if bare in CALLS else ALIASES.get(bare, "")


ALIASES: Mapping[str, str] = {
    "lseek64": "lseek",
    "fsync": "fsync",
    "pread": "pread64",
    "pwrite": "pwrite64",
    "usleep": "nanosleep",
    "g_usleep": "nanosleep",
    "open": "openat",
    "open64": "openat",
}
