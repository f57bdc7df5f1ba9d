"""Why something could not be had, as far as code acts on it; words are for people."""

from __future__ import annotations

import errno
from enum import IntEnum

from autopsy.files.plain import NotPlain


class FailureKind(IntEnum):
    """A kind of failure that somebody decides by; the number goes through a pipe."""

    OTHER = 0
    FULL = 1
    NOT_PERMITTED = 2
    GONE = 3
    NOT_PLAIN = 4


BY_ERRNO = {
    errno.ENOSPC: FailureKind.FULL,
    errno.EDQUOT: FailureKind.FULL,
    errno.ENOENT: FailureKind.GONE,
    errno.ESRCH: FailureKind.GONE,
}


def trouble_of(error: BaseException) -> FailureKind:
    """Return what kind of failure an exception is, by itself or by what raised it."""
    if isinstance(error, PermissionError):
        return FailureKind.NOT_PERMITTED
    if isinstance(error, OSError):
        return BY_ERRNO.get(error.errno or 0, FailureKind.OTHER)
    if isinstance(error, NotPlain):
        return FailureKind.NOT_PLAIN
    return FailureKind.OTHER if error.__cause__ is None else trouble_of(error.__cause__)
