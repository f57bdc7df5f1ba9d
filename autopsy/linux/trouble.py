"""Why something could not be had, as far as code acts on it; words are for people."""

from __future__ import annotations

import errno
from enum import IntEnum

from autopsy.files.plain import NotPlain


class Trouble(IntEnum):
    """A kind of failure that somebody decides by; the number goes through a pipe."""

    OTHER = 0
    FULL = 1
    NOT_PERMITTED = 2
    GONE = 3
    NOT_PLAIN = 4


BY_ERRNO = {
    errno.ENOSPC: Trouble.FULL,
    errno.EDQUOT: Trouble.FULL,
    errno.ENOENT: Trouble.GONE,
    errno.ESRCH: Trouble.GONE,
}


def trouble_of(error: BaseException) -> Trouble:
    """Return what kind of failure an exception is, by itself or by what raised it."""
    if isinstance(error, PermissionError):
        return Trouble.NOT_PERMITTED
    if isinstance(error, OSError):
        return BY_ERRNO.get(error.errno or 0, Trouble.OTHER)
    if isinstance(error, NotPlain):
        return Trouble.NOT_PLAIN
    return Trouble.OTHER if error.__cause__ is None else trouble_of(error.__cause__)
