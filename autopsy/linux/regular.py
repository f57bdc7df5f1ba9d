"""Opens regular files by names that a stranger chose: no device is opened, no FIFO waited for."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from pathlib import Path

SYS_OPENAT2 = 437  # one number on every architecture; kernel 5.6
OPEN_HOW = struct.Struct("<QQQ")  # flags, mode, resolve: openat2(2)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04

_libc = ctypes.CDLL(None, use_errno=True)


def open_regular(path: str | Path) -> int:
    """Open a file for reading. What it is, is asked before it is opened: opening a device may already do something.

    Raises:
        OSError: it cannot be opened; EINVAL, it is no regular file.
    """
    there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(there).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return os.open(f"/proc/self/fd/{there}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(there)


def name_of(descriptor: int) -> Path | None:
    """Return the name by which everybody gets to the very file that is open, None where there is none.

    A name that leads over a link is none: whoever lays the link could lay another.
    """
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    if not name.startswith("/"):
        return None
    how = OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    there = int(_libc.syscall(SYS_OPENAT2, -100, os.fsencode(name), how, len(how)))
    if there < 0:
        return None
    try:
        ours, named = os.fstat(descriptor), os.fstat(there)
    finally:
        os.close(there)
    return Path(name) if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino) else None


def anybody_reads(path: Path) -> bool:
    """Return whether any user of this machine may read the file, or use the folder, at this path."""
    try:
        facts = os.stat(path)
        folders = [os.stat(folder).st_mode for folder in path.parents]
    except OSError:
        return False
    wanted = 0o005 if stat.S_ISDIR(facts.st_mode) else 0o004
    return facts.st_mode & wanted == wanted and all(mode & 0o001 for mode in folders)


def copy(descriptor: int, destination: Path, most: int) -> int:
    """Copy an open file's bytes to a new file, `most` at most; return how many there were, 0 if there were more.

    Raises:
        OSError: as copy_file_range(2), read(2) and write(2) give it.
    """
    size = os.fstat(descriptor).st_size
    if not 0 < size <= most:
        return 0
    made = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    done = 0
    try:
        os.fchmod(made, 0o644)  # whatever our umask is: it is copied for another user
        while done < size:
            try:
                part = os.copy_file_range(descriptor, made, size - done, done, done)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                    raise
                part = os.pwrite(made, os.pread(descriptor, min(size - done, 1 << 20), done), done)
            if not part:
                break  # it was cut short meanwhile
            done += part
    finally:
        os.close(made)
    return done
