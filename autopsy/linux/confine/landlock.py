"""Leaves this process the named files and folders, and no other, by Landlock."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from autopsy.linux.confine.syscalls import checked

NAME = "landlock"
SYS_CREATE_RULESET = 444  # one number on every architecture; kernel 5.13
SYS_ADD_RULE = 445
SYS_RESTRICT_SELF = 446
ASK_VERSION = 1
PATH_BENEATH = 1

# include/uapi/linux/landlock.h: LANDLOCK_ACCESS_FS_*
EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READING = EXECUTE | READ_FILE | READ_DIR
WRITING = (
    WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
)
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
KNOWS_TRUNCATION = 3  # the first ABI that keeps a file from being cut by O_TRUNC
ALL_NET = 0b11  # bind and connect, of TCP: ABI 4
ALL_SCOPES = 0b11  # abstract sockets of the outside, signals to the outside: ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return the kernel's Landlock ABI, 0 where it has none or it is switched off."""
    return max(0, int(_libc.syscall(SYS_CREATE_RULESET, None, 0, ASK_VERSION)))


def restrict(reading: Iterable[Path], writing: Iterable[Path]) -> int:
    """Confine this process and what it starts; no_new_privs must be set. Return the ABI, 0 where there is no Landlock.

    A path that is not there, or that may not be reached, is left out.

    Raises:
        OSError: the kernel has Landlock and refused; then nothing is confined.
    """
    abi = version()
    if not abi:
        return 0
    # Each ABI knows more rights; to name one that the kernel does not know is refused.
    known = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    attributes = struct.pack("<QQQ", known, ALL_NET if abi >= 4 else 0, ALL_SCOPES if abi >= 6 else 0)
    attributes = attributes[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = checked(int(_libc.syscall(SYS_CREATE_RULESET, attributes, len(attributes), 0)), NAME)
    try:
        for paths, rights in ((reading, READING), (writing, WRITING)):
            for path in paths:
                _allow(rules, path, rights & known)
        checked(_libc.syscall(SYS_RESTRICT_SELF, rules, 0), NAME)
    finally:
        os.close(rules)
    return abi


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_A_FILE
        rule = struct.pack("<Qi", rights, descriptor)
        checked(_libc.syscall(SYS_ADD_RULE, rules, PATH_BENEATH, rule, 0), NAME)
    finally:
        os.close(descriptor)
