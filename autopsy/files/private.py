"""Folders that only we can write to, and files that are made or replaced without following anybody's link.

Every write of this tool goes through here. A folder is made by us or it is not used: who made it, and who else may
write to it, is asked of its descriptor. A file is made anew (O_EXCL), or replaced by a rename within the folder that is
held open, so that no link, FIFO or file that a stranger laid under the name is ever written through.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
OWNER_ONLY = 0o077
OTHERS_WRITE = 0o022
HALF = ".half"  # how files end that are being written
RENAME_NOREPLACE = 1
MOST_LINKS = 40  # as the kernel itself counts

_libc = ctypes.CDLL(None, use_errno=True)


class NotPrivate(OSError):
    """A folder that somebody else made, or that others may write to."""


def token() -> str:
    """Return letters for a name that nobody can guess."""
    return os.urandom(4).hex()


def make(path: Path | str, *, below: int | None = None) -> int:
    """Make a folder, and return its descriptor; one that is there already is an error, whoever made it.

    Raises:
        NotPrivate: what is there now is not what was made.
        OSError: as mkdir(2) gives it.
    """
    os.mkdir(path, 0o700, dir_fd=below)
    return hold(path, below=below, others=OWNER_ONLY)


def hold(path: Path | str, *, below: int | None = None, others: int = OTHERS_WRITE) -> int:
    """Return a descriptor of a folder that is ours, and closed to others in the bits of `others`.

    Raises:
        NotPrivate: it is somebody else's, or open to others.
        OSError: as open(2) gives it; a link is not followed.
    """
    folder = os.open(path, FOLDER, dir_fd=below)
    status = os.fstat(folder)
    if status.st_uid == os.geteuid() and not status.st_mode & others:
        return folder
    os.close(folder)
    why = "others may write to it" if status.st_uid == os.geteuid() else f"user {status.st_uid} made it"
    raise NotPrivate(errno.EPERM, why, str(path))


def enter(folder: int, path: str) -> int:
    """Return a descriptor of a folder below one that is held; what is missing on the way is made."""
    here = os.dup(folder)
    for part in path.split("/"):
        try:
            try:
                there = make(part, below=here)
            except FileExistsError:
                there = hold(part, below=here)
        finally:
            os.close(here)
        here = there
    return here


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold a folder of ours open."""
    folder = hold(path)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def anybodys(path: Path) -> Iterator[int]:
    """Hold a folder open that others may write to as well: where a person wants a bundle or a report."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def keeps(path: Path) -> bool:
    """Return whether nobody but root and us can take away from a folder what we make in it."""
    status = os.stat(path)
    shared = status.st_mode & OTHERS_WRITE and not status.st_mode & stat.S_ISVTX
    return status.st_uid in {0, os.geteuid()} and not shared


@contextmanager
def new(path: Path | str, *, below: int | None = None) -> Iterator[BinaryIO]:
    """Make a file that is not there yet, for its owner alone."""
    with open(os.open(path, NEW, 0o600, dir_fd=below), "wb") as stream:
        yield stream


@contextmanager
def replacing(folder: int, name: str) -> Iterator[BinaryIO]:
    """Write a file of a folder that is held: it has its name once it is whole, and its old content until then."""
    half = f".{name}.{token()}{HALF}"
    try:
        with new(half, below=folder) as stream:
            yield stream
        os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(half, dir_fd=folder)
        raise


def replace(folder: int, name: str, data: bytes) -> None:
    """Write one file of a folder that is held, whole or not at all."""
    with replacing(folder, name) as stream:
        stream.write(data)


def store(path: Path, data: bytes) -> None:
    """Write one file of a folder of ours, whole or not at all."""
    with held(path.parent) as folder:
        replace(folder, path.name, data)


@contextmanager
def _held_below(folder: Path, path: str) -> Iterator[int]:
    with held(folder) as top:
        here = enter(top, path) if path else os.dup(top)
    try:
        yield here
    finally:
        os.close(here)


def store_below(folder: Path, name: str, data: bytes) -> None:
    """Write one file at a path below a folder of ours; the folders on the way are made."""
    parent, _, file = name.rpartition("/")
    with _held_below(folder, parent) as here:
        replace(here, file, data)


@contextmanager
def new_below(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Make a new file at a path below a folder of ours; the folders on the way are made."""
    parent, _, file = name.rpartition("/")
    with _held_below(folder, parent) as here, new(file, below=here) as stream:
        yield stream


def begin(path: Path) -> FileIO:
    """Return a new file of a folder of ours, unbuffered, to be closed by the caller; an old one of its name goes."""
    with held(path.parent) as folder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        return open(os.open(path.name, NEW, 0o600, dir_fd=folder), "wb", buffering=0)


def append(path: Path, data: bytes) -> None:
    """Add to a file of a folder of ours; it is in the kernel when this returns."""
    with held(path.parent) as folder:
        descriptor = os.open(path.name, APPEND, 0o600, dir_fd=folder)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def publish(path: Path, data: bytes) -> None:
    """Write a file durably where others may write as well, whole or not at all; a link of its name is replaced."""
    with anybodys(path.parent) as folder:
        with replacing(folder, path.name) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.fsync(folder)


def meant_by(path: Path) -> Path:
    """Return where a path leads that a person named, as far as root's links and ours lead; those of /proc are an end.

    Raises:
        OSError: they lead in a circle.
    """
    for _ in range(MOST_LINKS):
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(facts.st_mode) or facts.st_uid not in {0, os.geteuid()} or path.is_relative_to("/proc"):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def deliver(path: Path, data: bytes) -> None:
    """Write where a person wants it: a file whole or not at all; a device or a pipe is written to, and never replaced.

    A link of ours is followed; one that somebody else laid is replaced: it could lead to any file of root's.
    """
    end = meant_by(path)
    if end.is_relative_to("/proc") or (not end.is_symlink() and end.exists() and not end.is_file()):
        pour(end, data)
    else:
        publish(end, data)


def pour(path: Path, data: bytes) -> None:
    """Write to a device or a pipe that a person named, which is never made and never replaced."""
    follow = 0 if path.is_relative_to("/proc") else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | follow)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def rename_new(folder: int, old: str, name: str) -> None:
    """Give a file of a folder a name that is free.

    Raises:
        FileExistsError: it is taken.
        OSError: as renameat2(2) gives it.
    """
    if not _libc.renameat2(folder, os.fsencode(old), folder, os.fsencode(name), RENAME_NOREPLACE):
        return
    number = ctypes.get_errno()
    if number not in {errno.EINVAL, errno.ENOSYS}:  # NFS and some FUSE file systems know only the old call
        raise OSError(number, os.strerror(number), name)
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    os.rename(old, name, src_dir_fd=folder, dst_dir_fd=folder)


def provide(path: Path) -> None:
    """Make a folder that a person named, and what is missing above it; one that is there is as good."""
    if path.is_dir():
        return
    for folder in (*reversed(path.parents), path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def remove(path: Path) -> None:
    """Remove a folder of ours with all that is in it; one that is not there is no error.

    Raises:
        NotPrivate: it is not ours.
    """
    try:
        folder = hold(path)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(folder):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(path)
