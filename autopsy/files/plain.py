"""Opens regular files whose names somebody else may have laid: no link, device, FIFO or socket is ever opened.

What a name means is asked first, of a descriptor that opens nothing (O_PATH): to open a device is to use it. Only a
regular file is then opened, through that very descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotPlain(Exception):
    """The file is not what it must be: a link, a FIFO, a device, or far too large."""


def open_plain(path: str | os.PathLike[str], *, below: int | None = None) -> int:
    """Open a regular file to read.

    Raises:
        NotPlain: it is something else.
        OSError: as open(2) gives it.
    """
    looked_at = os.open(path, LOOK, dir_fd=below)
    try:
        return reopen(looked_at, str(path))
    finally:
        os.close(looked_at)


def reopen(looked_at: int, name: str) -> int:
    """Open to read what an O_PATH descriptor stands for, if it is a regular file.

    Raises:
        NotPlain: it is something else.
        OSError: as open(2) gives it.
    """
    if not stat.S_ISREG(os.fstat(looked_at).st_mode):
        raise NotPlain(f"{name} is not a regular file")
    return os.open(f"/proc/self/fd/{looked_at}", READ)


def open_beneath(folder: int, path: str) -> int:
    """Open a regular file below a folder that is held, with no link on the whole way.

    Raises:
        NotPlain: it is something else, or its path leads out.
        OSError: as open(2) gives it.
    """
    *parents, name = path.split("/")
    here = os.dup(folder)
    try:
        for part in parents:
            _must_lead_down(part, path)
            there = os.open(part, LOOK | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = there
        _must_lead_down(name, path)
        return open_plain(name, below=here)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise NotPlain(f"{path} leads through a link") from error
        raise
    finally:
        os.close(here)


def _must_lead_down(part: str, path: str) -> None:
    if part in {"", ".", ".."}:
        raise NotPlain(f"{path} does not lead down")
