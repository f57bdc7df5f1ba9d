"""Tells of a system call that the kernel refused, as Python's own calls do."""

from __future__ import annotations

import ctypes
import os


def checked(result: int, what: str) -> int:
    """Return what a call of a library with use_errno returned.

    Raises:
        OSError: it is negative; `what` stands where a file's name does.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
