"""Refuses this process the system calls that nobody needs who only reads bytes, by a seccomp filter."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import cache

from autopsy.linux.confine.syscalls import checked

# asm/unistd_64.h of x86-64, and asm-generic/unistd.h, which aarch64 has; None where there is no such call.
Numbers = dict[str, tuple[int | None, int | None]]
DENIED: Numbers = {
    # the network, and every peer on a socket
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    # another process, and what it holds
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_mrelease": (448, 448),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setsid": (112, 157),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    # what a file is, which Landlock leaves to its owner: it knows of reading and writing alone
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "truncate": (76, 45),
    # mounts, namespaces and files behind their names
    "mount": (165, 40),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fsconfig": (431, 431),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # the parts of the kernel in which most holes were found
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "modify_ldt": (154, None),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "fanotify_init": (300, 262),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    # what outlives a process
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
# A debugger of files signals nobody.
SIGNALS: Numbers = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
}
CLONE = (56, 220)
CLONE3 = (435, 435)  # its flags lie in memory, where no filter can read them
IOCTL = (16, 29)
FCNTL = (72, 25)
PRLIMIT64 = (302, 261)
OPEN = (2, None)
OPENAT = (257, 56)
OPENAT2 = (437, 437)

NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* of clone(2)
TYPE_FOR_ANOTHER = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into the terminal that is watched
SIGNAL_ANOTHER = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a pipe that stirs sends anybody any signal
ACCESS, TRUNCATE = os.O_ACCMODE, os.O_TRUNC

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH_*
X32 = 0x40000000  # of x86-64: the other ABI's numbers begin here

# linux/filter.h, linux/seccomp.h
LOAD, RETURN, SKIP = 0x20, 0x06, 0x05
JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, AND = 0x15, 0x25, 0x35, 0x45, 0x54
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
OF_NUMBER, OF_ARCHITECTURE = 0, 4  # struct seccomp_data, and the low halves of the arguments
OF_FIRST, OF_SECOND, OF_THIRD = 16, 24, 32
PR_SET_SECCOMP = 22
MODE_FILTER = 2
SIZE = 8  # of an instruction

_libc = ctypes.CDLL(None, use_errno=True)


def _do(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


ALLOWED = _do(RETURN, ALLOW)
REFUSED = _do(RETURN, REFUSE | errno.EPERM)
UNKNOWN = _do(RETURN, REFUSE | errno.ENOSYS)  # whoever asks falls back to the older call, whose arguments a filter sees

Program = tuple[bytes, ...]


def knows_this_machine() -> bool:
    """Return whether there is a filter for this architecture."""
    return os.uname().machine in ARCHITECTURES


def warm(*, truncation: bool = False) -> None:
    """Make both filters, if there are any for this architecture: children of this process have them then."""
    if knows_this_machine():
        program(signals=False, truncation=truncation)
        program(signals=True)


def deny(*, truncation: bool = False) -> bool:
    """Confine this process and what it starts; no_new_privs must be set. Return whether its architecture is known.

    With `truncation` it may cut no file by opening it to read, which Landlock refuses itself since its third ABI.

    Raises:
        OSError: the kernel refused; then nothing is confined.
    """
    return knows_this_machine() and _install(program(signals=False, truncation=truncation))


def deny_signals() -> bool:
    """Refuse this process, and what it starts, every signal to anybody. As deny().

    Raises:
        OSError: the kernel refused.
    """
    return knows_this_machine() and _install(program(signals=True))


@cache
def program(*, signals: bool, truncation: bool = False) -> bytes:
    """Return a filter for this architecture; once it was made, children of this process have it for nothing."""
    column, architecture = ARCHITECTURES[os.uname().machine]
    if signals:
        return _program(architecture, dict.fromkeys(_numbers(SIGNALS, column), (REFUSED,)))
    return _program(architecture, _rules(column, truncation=truncation))


def _install(instructions: bytes) -> bool:
    held = ctypes.create_string_buffer(instructions)
    header = struct.pack("<HxxxxxxQ", len(instructions) // SIZE, ctypes.addressof(held))
    checked(_libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(header), 0, 0), "seccomp")
    return True


def _numbers(calls: Numbers, column: int) -> Iterator[int]:
    return (number for numbers in calls.values() if (number := numbers[column]) is not None)


def _rules(column: int, *, truncation: bool) -> dict[int, Program]:
    """Return what is to be done at a call of each number; each ends with an answer."""
    rules: dict[int, Program] = dict.fromkeys(_numbers(DENIED, column), (REFUSED,))
    rules[CLONE3[column]] = (UNKNOWN,)
    rules[CLONE[column]] = (_do(LOAD, OF_FIRST), _do(JUMP_ANY_BIT, NEW_NAMESPACES, no=1), REFUSED, ALLOWED)
    rules[IOCTL[column]] = (_do(LOAD, OF_SECOND), *_refused(TYPE_FOR_ANOTHER), ALLOWED)
    rules[FCNTL[column]] = (_do(LOAD, OF_SECOND), *_refused(SIGNAL_ANOTHER), ALLOWED)
    rules[PRLIMIT64[column]] = (_do(LOAD, OF_FIRST), _do(JUMP_EQUAL, 0, yes=1), REFUSED, ALLOWED)  # 0: its own
    if truncation:
        rules[OPENAT2[column]] = (UNKNOWN,)
        for numbers, flags in ((OPEN, OF_SECOND), (OPENAT, OF_THIRD)):
            if (number := numbers[column]) is not None:
                rules[number] = (_do(LOAD, flags), _do(AND, ACCESS | TRUNCATE), *_refused((TRUNCATE,)), ALLOWED)
    return rules


def _refused(values: tuple[int, ...]) -> Iterator[bytes]:
    for value in values:
        yield from (_do(JUMP_EQUAL, value, no=1), REFUSED)


def _program(architecture: int, rules: dict[int, Program]) -> bytes:
    """Return the filter: what no rule names is allowed.

    The kernel runs it for every number when it is installed, to remember which are always allowed: a search in halves
    takes a tenth of what one rule after the other does, which is a millisecond.
    """
    checked: Program = (
        _do(LOAD, OF_ARCHITECTURE),
        _do(JUMP_EQUAL, architecture, yes=1),
        _do(RETURN, KILL),
        _do(LOAD, OF_NUMBER),
    )
    if os.uname().machine == "x86_64":
        checked += (_do(JUMP_GREATER_EQUAL, X32, no=1), _do(RETURN, KILL))
    return b"".join(checked + _searched(_ranges(rules)))


def _ranges(rules: dict[int, Program]) -> list[tuple[int, int, Program]]:
    """Return first number, last number and what to do, in order; neighbours with one rule are together."""
    ranges: list[tuple[int, int, Program]] = []
    for number, rule in sorted(rules.items()):
        if ranges and ranges[-1][1:] == (number - 1, rule):
            ranges[-1] = (ranges[-1][0], number, rule)
        else:
            ranges.append((number, number, rule))
    return ranges


def _searched(ranges: list[tuple[int, int, Program]]) -> Program:
    if len(ranges) == 1:
        first, last, rule = ranges[0]
        outside = 1 + len(rule)
        below = _do(JUMP_GREATER_EQUAL, first, no=outside)
        return (below, _do(JUMP_GREATER, last, yes=outside - 1), *rule, ALLOWED)
    middle = len(ranges) // 2
    left, right = _searched(ranges[:middle]), _searched(ranges[middle:])
    # Only an unconditional jump leads further than 255 instructions.
    return (_do(JUMP_GREATER_EQUAL, ranges[middle][0], no=1), _do(SKIP, len(left)), *left, *right)
