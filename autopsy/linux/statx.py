"""Asks for a file's status with or without asking the server that it lies on: statx(2), which Python does not know."""

from __future__ import annotations

import ctypes
import os
import struct

from autopsy.dataclass import dataclass

FORCE_SYNC, DONT_SYNC = 0x2000, 0x4000  # AT_STATX_…
BASIC = 0x7FF  # STATX_BASIC_STATS
ROOM = 256  # bytes of struct statx
MODE_AT, INODE_AT, DEVICE_AT = 28, 32, 136


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What kind of file it is, and which: as stat(2) has it."""

    mode: int
    inode: int
    device: tuple[int, int]


def ask_server(folder: int, path: str) -> None:
    """Return once whatever the file lies on has told of it, which can be never.

    Raises:
        OSError: it told of an error, or there is no such call here.
    """
    _statx(folder, path, FORCE_SYNC)


def without_asking(folder: int, path: str) -> FileStatus:
    """Return what this host's kernel knows of an open file.

    Raises:
        OSError: there is none, or no such call here.
    """
    status = _statx(folder, path, DONT_SYNC)
    mode, inode = struct.unpack_from("=H", status, MODE_AT)[0], struct.unpack_from("=Q", status, INODE_AT)[0]
    return FileStatus(mode, inode, struct.unpack_from("=II", status, DEVICE_AT))


def _statx(folder: int, path: str, how: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "statx"):
        raise OSError("this C library knows no statx(2)")
    room = ctypes.create_string_buffer(ROOM)
    if libc.statx(folder, os.fsencode(path), how, BASIC, room):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return room.raw
