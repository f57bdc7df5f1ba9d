"""The x86-64 system calls that a QEMU thread has been seen to sleep in, or may (a shared folder's), by number."""

from __future__ import annotations

from types import MappingProxyType

NAMES = MappingProxyType(
    {
        0: "read",
        1: "write",
        3: "close",
        5: "fstat",
        7: "poll",
        8: "lseek",
        9: "mmap",
        11: "munmap",
        16: "ioctl",
        17: "pread64",
        18: "pwrite64",
        19: "readv",
        20: "writev",
        23: "select",
        25: "mremap",
        28: "madvise",
        35: "nanosleep",
        42: "connect",
        43: "accept",
        44: "sendto",
        45: "recvfrom",
        46: "sendmsg",
        47: "recvmsg",
        61: "wait4",
        72: "fcntl",
        73: "flock",
        74: "fsync",
        75: "fdatasync",
        77: "ftruncate",
        82: "rename",
        83: "mkdir",
        84: "rmdir",
        86: "link",
        87: "unlink",
        88: "symlink",
        90: "chmod",
        92: "chown",
        128: "rt_sigtimedwait",
        130: "rt_sigsuspend",
        188: "setxattr",
        189: "lsetxattr",
        190: "fsetxattr",
        202: "futex",
        208: "io_getevents",
        209: "io_submit",
        219: "restart_syscall",
        230: "clock_nanosleep",
        232: "epoll_wait",
        247: "waitid",
        257: "openat",
        258: "mkdirat",
        259: "mknodat",
        260: "fchownat",
        262: "newfstatat",
        263: "unlinkat",
        264: "renameat",
        265: "linkat",
        266: "symlinkat",
        268: "fchmodat",
        270: "pselect6",
        271: "ppoll",
        277: "sync_file_range",
        280: "utimensat",
        281: "epoll_pwait",
        285: "fallocate",
        288: "accept4",
        295: "preadv",
        296: "pwritev",
        299: "recvmmsg",
        306: "syncfs",
        307: "sendmmsg",
        316: "renameat2",
        326: "copy_file_range",
        327: "preadv2",
        328: "pwritev2",
        332: "statx",
        426: "io_uring_enter",
        441: "epoll_pwait2",
    }
)

# How many arguments a call takes, where that is fewer than six: what lies in the other registers is nobody's.
ARGUMENTS = MappingProxyType(
    dict.fromkeys(("read", "write", "readv", "writev", "poll", "ioctl", "sendmsg", "recvmsg", "connect"), 3)
    | dict.fromkeys(("futex", "epoll_wait", "clock_nanosleep", "pread64", "pwrite64", "fallocate"), 4)
    | dict.fromkeys(("select", "ppoll", "recvmmsg", "io_getevents"), 5)
    | {"nanosleep": 2, "fsync": 1, "fdatasync": 1}
)

# A worker thread of aio=threads is inside one of these while it does a request.
REQUEST_CALLS = frozenset(
    {"read", "write", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "fsync", "fdatasync"}
    | {"fallocate", "ioctl", "ftruncate", "copy_file_range", "sync_file_range", "lseek", "fstat", "newfstatat", "statx"}
)

POLL_CALLS = frozenset({"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2"})

SLEEP_CALLS = frozenset({"nanosleep", "clock_nanosleep"})  # for a time that the caller says: each ends by itself

# In these a thread waits for a program at the other end of a descriptor.
PEER_CALLS = frozenset({"recvmsg", "recvfrom", "sendmsg", "sendto", "read", "readv", "write", "writev", "connect"})

# Their first argument is a descriptor.
DESCRIPTOR_CALLS = frozenset(
    {"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "fsync", "fdatasync", "ioctl"}
    | {"sendmsg", "recvmsg", "sendto", "recvfrom", "connect", "fstat", "ftruncate", "fallocate"}
)

FUTEX = 202
HIGHEST = 1 << 12  # a thread outside system calls has -1 here, as an unsigned word
POLLS = frozenset(number for number, name in NAMES.items() if name in POLL_CALLS) | {
    426
}  # io_uring_enter(2) polls, too


def system_call(number: int) -> str:
    """Return the system call's name, empty for a thread that was in none."""
    return NAMES.get(number, f"system call {number}") if 0 <= number < HIGHEST else ""
