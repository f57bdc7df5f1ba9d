"""Tells the working folder of a capture at work from one that a killed capture left behind.

A capture holds a record lock on its folder's README.txt. The kernel drops it with the process, however that ends, and
no child inherits it: a child of ours that sleeps in the kernel does not keep a dead capture alive. Whoever seals what
was left behind locks it as well: two captures that begin at once do not both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import time
from io import FileIO
from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.staging.places import memory_places
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_patient_child

YOUNG_SECONDS = 60.0  # a folder without a README may be a capture that is only beginning
ASLEEP_SECONDS = 2.0  # that whoever looks at a folder may sleep at it, before it is said to hang
LOOK_SECONDS = 20.0  # on a host that gives it no processor

LOCK_KIND = struct.Struct("h")  # the first field of what follows
WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock: fcntl(2)


def begin(folder: Path, readme: bytes) -> FileIO:
    """Put a README.txt into a working folder that is locked before anybody finds it there; open, it stays so.

    Record locks go when this process closes any descriptor of the file: nothing may open it here again.

    Raises:
        OSError: it cannot be written.
    """
    half = folder / f".{layout.README}{private.HALF}"
    stream = private.begin(half)
    try:
        stream.write(readme)
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(half, folder / layout.README)
    except OSError:
        stream.close()
        raise
    return stream


def claim(folder: Path) -> int | None:
    """Lock a folder that was left behind, and return the descriptor that keeps it; None where somebody has it.

    The lock is the descriptor's, not the process's: whoever seals the folder reads its README.txt, too.
    """
    try:
        descriptor = os.open(folder / layout.README, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE_FILE)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class CannotLook(Exception):
    """Nobody can tell whether a capture still fills a folder. The message says why."""


def at_work(folder: Path) -> bool:
    """Return whether a capture still fills this folder. Looks in a child, which a file system that hangs may keep.

    Raises:
        CannotLook: the folder does not let itself be looked at.
    """
    try:
        return bool(in_patient_child(lambda: b"yes" if _is_filled(folder) else b"", ASLEEP_SECONDS, LOOK_SECONDS))
    except (ChildTimedOut, ChildFailed) as error:
        raise CannotLook(str(error)) from error


def _is_filled(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / layout.README, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return folder.is_dir() and time.time() - os.lstat(folder).st_mtime < YOUNG_SECONDS
    try:
        # Asked, not taken: two that look at once must not take each other for a capture.
        (kind,) = LOCK_KIND.unpack_from(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, WHOLE_FILE))
    finally:
        os.close(descriptor)
    return bool(kind != fcntl.F_UNLCK)


def leftovers() -> tuple[Path, ...]:
    """Return the working folders in memory that killed captures of this user left, the oldest first."""
    folders = []
    for place in memory_places():
        with contextlib.suppress(OSError):
            folders += [path for path in place.iterdir() if path.name.endswith(layout.WORK) and is_ours(path)]
    by_age = sorted(folders, key=lambda path: layout.of_folder(path.name)[-16:])
    return tuple(path for path in by_age if _is_left(path))


def _is_left(folder: Path) -> bool:
    try:
        return not at_work(folder)
    except CannotLook:
        return False  # it is left alone


def twin(folder: Path) -> Path | None:
    """Return the complete working folder of which `folder`, a durable copy, holds what was there a step before."""
    if not folder.name.endswith(layout.PARTIAL):
        return None
    name = folder.name.removesuffix(layout.PARTIAL) + layout.WORK
    return next((path for place in memory_places() if is_ours(path := place / name)), None)


def is_ours(folder: Path) -> bool:
    """Return whether a folder is one that we made: nobody else's, and closed to everybody else."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.geteuid()
    return private and folder.name.startswith("autopsy-")
