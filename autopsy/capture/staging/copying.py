"""Copies what is new in the working folder to a durable one, and fsyncs it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress

from autopsy.bundle import layout
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain

FULL = b"full"
MOST_AT_ONCE = 4 << 20  # so that whoever waits sees it go on


def copy_new(work: int, durable: int) -> bytes:
    """Copy every file that is not there yet in the same size and age, fsync each, then the folders.

    Both are descriptors of folders of ours. Returns FULL where there was no room; then nothing is left of the copy.
    """
    # Opened anew: a descriptor that came with the fork shares its place in the listing with every other child.
    source, copy = (os.open(".", private.FOLDER, dir_fd=folder) for folder in (work, durable))
    try:
        if _copy_folder(source, copy):
            _sync_above(copy)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _empty(copy)  # the bundle needs that room
        return FULL
    finally:
        os.close(source)
        os.close(copy)
    return b""


def _copy_folder(source: int, copy: int) -> bool:
    """Copy one folder and return whether anything in it was new."""
    changed = False
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith(layout.SCRATCH):
                changed |= _copy_below(source, copy, entry.name)
        elif not entry.name.endswith(private.HALF):
            with suppress(FileNotFoundError, NotPlain):  # it was a file for a moment only
                changed |= _copy_one(source, copy, entry.name)
    if changed:
        os.fsync(copy)
    return changed


def _copy_below(source: int, copy: int, name: str) -> bool:
    below = os.open(name, private.FOLDER, dir_fd=source)
    try:
        there = private.enter(copy, name)
        try:
            return _copy_folder(below, there)
        finally:
            os.close(there)
    finally:
        os.close(below)


def _copy_one(source: int, copy: int, name: str) -> bool:
    descriptor = open_plain(name, below=source)
    try:
        status = os.fstat(descriptor)
        with suppress(FileNotFoundError):
            known = os.stat(name, dir_fd=copy, follow_symlinks=False)
            if (known.st_size, known.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
                return False
        with private.replacing(copy, name) as stream:
            while os.sendfile(stream.fileno(), descriptor, None, MOST_AT_ONCE):
                pass
            os.utime(stream.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fsync(stream.fileno())
    finally:
        os.close(descriptor)
    return True


def _sync_above(folder: int) -> None:
    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _empty(folder: int) -> None:
    with suppress(OSError):
        for name in os.listdir(folder):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)


def sync_tree(folder: int) -> bytes:
    """Make everything in a folder of ours durable where it is."""
    here = os.open(".", private.FOLDER, dir_fd=folder)
    try:
        _sync_folder(here)
    finally:
        os.close(here)
    return b""


def _sync_folder(folder: int) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            below = os.open(entry.name, private.FOLDER, dir_fd=folder)
            try:
                _sync_folder(below)
            finally:
                os.close(below)
        else:
            with suppress(FileNotFoundError, NotPlain):
                descriptor = open_plain(entry.name, below=folder)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    os.fsync(folder)
