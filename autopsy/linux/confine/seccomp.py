"""Refuses this process the system calls that nobody needs who only reads bytes, by a seccomp filter."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# asm/unistd_64.h of x86-64, and asm-generic/unistd.h, which aarch64 has; None where there is no such call.
Numbers = dict[str, tuple[int | None, int | None]]
DENIED: Numbers = {
    # the network, and every peer on a socket
    "socket": (41, 198),
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
    "setsid": (112, 157),
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

NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* of clone(2)
TYPE_FOR_ANOTHER = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into the terminal that is watched

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH_*
X32 = 0x40000000  # of x86-64: the other ABI's numbers begin here

# linux/filter.h, linux/seccomp.h
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
OF_NUMBER, OF_ARCHITECTURE, OF_FIRST, OF_SECOND = 0, 4, 16, 24  # struct seccomp_data; low halves of the arguments
PR_SET_SECCOMP = 22
MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)


def knows_this_machine() -> bool:
    """Return whether there is a filter for this architecture."""
    return platform.machine() in ARCHITECTURES


def deny(*, signals: bool) -> bool:
    """Confine this process and what it starts; no_new_privs must be set. Return whether its architecture is known.

    With `signals` it may not send any, either.

    Raises:
        OSError: the kernel refused; then nothing is confined.
    """
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = _program(*known, signals=signals)
    instructions = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(instructions))
    if _libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(header), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "seccomp")
    return True


def _program(column: int, architecture: int, *, signals: bool) -> list[bytes]:
    """Return the filter. Each rule is a jump over its own answer; what no rule names is allowed."""
    refused = _do(RETURN, REFUSE | errno.EPERM)
    program = [
        _do(LOAD, OF_ARCHITECTURE),
        _do(JUMP_EQUAL, architecture, yes=1),
        _do(RETURN, KILL),
        _do(LOAD, OF_NUMBER),
    ]
    if platform.machine() == "x86_64":
        program += [_do(JUMP_GREATER_EQUAL, X32, no=1), _do(RETURN, KILL)]
    for numbers in (DENIED | SIGNALS if signals else DENIED).values():
        if (number := numbers[column]) is not None:
            program += [_do(JUMP_EQUAL, number, no=1), refused]
    # "No such call": the C library asks clone() then, whose flags a filter sees.
    program += [_do(JUMP_EQUAL, CLONE3[column], no=1), _do(RETURN, REFUSE | errno.ENOSYS)]
    program += [_do(JUMP_EQUAL, CLONE[column], no=3), _do(LOAD, OF_FIRST)]
    program += [_do(JUMP_ANY_BIT, NEW_NAMESPACES, no=1), refused, _do(LOAD, OF_NUMBER)]
    program += [_do(JUMP_EQUAL, IOCTL[column], no=2 * len(TYPE_FOR_ANOTHER) + 1), _do(LOAD, OF_SECOND)]
    for request in TYPE_FOR_ANOTHER:
        program += [_do(JUMP_EQUAL, request, no=1), refused]
    return [*program, _do(RETURN, ALLOW)]


def _do(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)
