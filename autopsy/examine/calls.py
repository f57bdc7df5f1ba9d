"""The system calls of x86-64 that QEMU's threads have been seen to sleep in."""

from __future__ import annotations

from autopsy.bundle import restarts

FUTEX = 202
POLLS = frozenset((7, 23, 232, 270, 271, 281, 426, 441))
HIGHEST = 1 << 12  # a thread outside system calls has -1 here, as an unsigned word

SYSTEM_CALLS = {
    0: "read",
    1: "write",
    3: "close",
    5: "fstat",
    7: "poll",
    8: "lseek",
    16: "ioctl",
    17: "pread64",
    18: "pwrite64",
    19: "readv",
    20: "writev",
    23: "select",
    35: "nanosleep",
    42: "connect",
    44: "sendto",
    45: "recvfrom",
    46: "sendmsg",
    47: "recvmsg",
    61: "wait4",
    72: "fcntl",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    FUTEX: "futex",
    208: "io_getevents",
    209: "io_submit",
    restarts.X86_64: "restart_syscall",
    230: "clock_nanosleep",
    232: "epoll_wait",
    247: "waitid",
    257: "openat",
    262: "newfstatat",
    270: "pselect6",
    271: "ppoll",
    277: "sync_file_range",
    281: "epoll_pwait",
    285: "fallocate",
    295: "preadv",
    296: "pwritev",
    306: "syncfs",
    326: "copy_file_range",
    327: "preadv2",
    328: "pwritev2",
    332: "statx",
    426: "io_uring_enter",
    441: "epoll_pwait2",
}


def system_call(number: int) -> str:
    """Return the system call's name, empty for a thread that was in none."""
    return SYSTEM_CALLS.get(number, f"system call {number}") if 0 <= number < HIGHEST else ""
