"""Calls one function by one name, however the compiler and the C library of a build spell it."""

from __future__ import annotations

import re
from collections.abc import Iterable

# In this order; each is tried on what those before it have left.
SPELLINGS = (
    (re.compile(r"@.*$"), ""),  # of a symbol's version: pthread_cond_wait@@GLIBC_2.3.2, read@plt
    # What GCC and LLVM append to copies that they made: of a partition (LTO), for known arguments, of an outlined half.
    (re.compile(r"(?:\.(?:lto_priv|constprop|isra|part|cold|llvm|localalias|clone|\d+))+$"), ""),
    (re.compile(r"^__GI_+"), "__"),  # glibc's own calls to itself
    (re.compile(r"^__libc_(?!start)"), ""),
    (
        re.compile(
            r"^_{2,3}(?=(?:pthread|sem|poll|ppoll|epoll|read|write|pread|pwrite|recv|send|select|ioctl|futex|lll)_?)"
        ),
        "",
    ),
    (re.compile(r"(?:_nocancel|_time64|64_v\d+)$"), ""),
    (re.compile(r"(?<=poll|read)64$|(?<=pwrite)64$"), ""),
)
# Where every thread and every coroutine begins, and what the C library puts between a call and the kernel: they differ
# from one glibc to the next, and tell nothing.
DULL = frozenset(
    {
        "_start",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
        "start_thread",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_call_main",
        "main",
        "qemu_thread_start",
        "coroutine_trampoline",
        "__start_context",
        "syscall",
        "__syscall_cancel",
        "__syscall_cancel_arch",
        "__internal_syscall",
        "__internal_syscall_cancel",
        "__futex_abstimed_wait_common",
        "__futex_abstimed_wait_common64",
        "__futex_lock_pi64",
        "futex_wait",
        "futex_abstimed_wait_common",
        "lll_lock_wait",
        "lll_mutex_lock_optimized",
        "__lll_lock_wait",
    }
)


def spelled(name: str) -> str:
    """Return a function's name as every build has it; empty for one that tells nothing."""
    if name.startswith("<") or name in DULL:
        return ""
    for pattern, instead in SPELLINGS:
        name = pattern.sub(instead, name)
    return "" if name in DULL else name


def spelled_stack(names: Iterable[str]) -> tuple[str, ...]:
    """Return a stack's functions, innermost first; one that calls itself, or a copy of itself, stands once."""
    lines: list[str] = []
    for name in map(spelled, names):
        if name and lines[-1:] != [name]:
            lines.append(name)
    return tuple(lines)
