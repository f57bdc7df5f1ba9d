"""Small files that somebody else may have laid for us: symbolic links, FIFOs, endless ones."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from pathlib import Path

from autopsy.files.plain import READ, NotPlain, open_plain, reopen

MOST_LINKS = 40  # as the kernel itself counts

SYS_OPENAT2 = 437  # one number on every architecture; kernel 5.6
OPEN_HOW = struct.Struct("<QQQ")  # flags, mode, resolve: openat2(2)
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


def read_plain(path: str | Path, most: int) -> bytes:
    """Read a regular file that must not be a symbolic link.

    Raises:
        NotPlain: it is something else, or larger than `most` bytes.
        OSError: as open(2) and read(2) give it.
    """
    return read_regular(open_plain(path), str(path), most)


def read_regular(descriptor: int, path: str, most: int) -> bytes:
    """Read what a descriptor is open on, and close it.

    Raises:
        NotPlain: it is no regular file, or larger than `most` bytes.
    """
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotPlain(f"{path} is not a regular file")
        data = _read(descriptor, most + 1)
    finally:
        os.close(descriptor)
    if len(data) > most:
        raise NotPlain(f"{path} is larger than {most} bytes")
    return data


def open_below(root: str, path: str, flags: int = 0) -> int:
    """Open `path` as a process whose root directory is `root` would, and never anything outside of it.

    A container's owner lays its links: an absolute one must not lead into our own tree, however fast it is swapped.
    Nor is a device, a FIFO or a socket ever opened: a regular file is, and with O_DIRECTORY a folder.

    Raises:
        NotPlain: it is something else.
        OSError: as openat2(2) gives it; ENOSYS before kernel 5.6.
    """
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        looked_at = int(_libc.syscall(SYS_OPENAT2, folder, os.fsencode(path), how, len(how)))
        if looked_at < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"{root}{path}")
    finally:
        os.close(folder)
    try:
        if flags & os.O_DIRECTORY:
            return os.open(f"/proc/self/fd/{looked_at}", READ | os.O_DIRECTORY)
        return reopen(looked_at, path)
    finally:
        os.close(looked_at)


def read_kernel(path: str, most: int = 1 << 20) -> bytes:
    """Read a file of /proc or /sys, `most` bytes of it at most."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(descriptor, most)
    finally:
        os.close(descriptor)


def _read(descriptor: int, most: int) -> bytes:
    parts = []
    left = most
    while left > 0 and (part := os.read(descriptor, min(left, 1 << 18))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def real_path_in(root: str, path: str) -> str:
    """Return what `path` means to a process whose root directory is `root`, without any link, told from that root.

    Needed because the kernel follows an absolute link below /proc/PID/root back into our own tree.

    Raises:
        OSError: a part is missing, or there are too many links.
    """
    left = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = "/".join((root.rstrip("/"), *done, part))
        if not stat.S_ISLNK(os.lstat(here).st_mode):
            done.append(part)
            continue
        links += 1
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        aim = os.readlink(here)
        if aim.startswith("/"):
            done = []
        left.extend(part for part in reversed(aim.split("/")) if part not in ("", "."))
    return "/" + "/".join(done)
