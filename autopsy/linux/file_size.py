"""Asks what a file lies on how large the file is now, whatever a cache says."""

from __future__ import annotations

import ctypes
import os

FORCE_SYNC = 0x2000  # AT_STATX_FORCE_SYNC: a network's or a FUSE file system asks its server
SIZE = 0x200  # STATX_SIZE
ROOM = 256  # bytes of struct statx


def ask_for_size(folder: int, path: str) -> None:
    """Return once it has answered, which can be never; an error is an answer, too.

    Raises:
        OSError: the C library has no statx.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "statx"):
        raise OSError("no statx(2) to ask by")
    libc.statx(folder, os.fsencode(path), FORCE_SYNC, SIZE, ctypes.create_string_buffer(ROOM))
