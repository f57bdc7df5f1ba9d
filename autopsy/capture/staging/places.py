"""Which directories evidence can go to: they answer, they have room, and whether they lie in memory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.spare_memory import lies_in_memory, spare_memory
from autopsy.store import place as store

PROBE_SECONDS = 2.0
FALLBACK_SECONDS = 1.0  # there are several, and all may lie on the disk that is stuck
MEMORY = (Path("/run"), Path("/dev/shm"))  # noqa: S108 - the folder that is made there is 0700
EVERYBODYS = Path("/var/tmp")  # noqa: S108 - nothing of ours lies in it but a private folder


@dataclass(frozen=True, slots=True)
class ScratchPlace:
    """A directory that answers, with the bytes that fit there; `made` for this capture, it goes when it is empty."""

    path: Path
    room: int
    made: bool = False


@dataclass(frozen=True, slots=True)
class Unusable:
    """A directory that cannot be used, and why; `hangs` tells one that does not answer from one that refuses."""

    path: Path
    why: str
    hangs: bool = False


class _Found(msgspec.Struct, frozen=True):
    """What a look at a directory found: the bytes that fit there, or why it cannot be used."""

    room: int = 0
    why: str = ""


def fallbacks() -> tuple[Path, ...]:
    """Return where evidence goes when no place that was asked for can take it, the best first."""
    return (store.store_path(), EVERYBODYS, *MEMORY)


def probe(
    path: Path, needs: Callable[[int], int] = lambda _room: 0, *, fallback: bool = False
) -> ScratchPlace | Unusable:
    """Find out in a child whether a file can be made, written and fsynced there, and whether what is needed fits.

    `needs` is given the bytes that there is room for, and returns how many are needed.

    A place that a person named is made where it is missing. Of the fallbacks only the store is; and in the one where
    everybody writes, a folder of our own is made and returned.
    """
    place = path / f"autopsy-{private.token()}" if fallback and path == EVERYBODYS else path

    seconds = FALLBACK_SECONDS if fallback else PROBE_SECONDS
    try:
        answer = in_child(lambda: msgspec.json.encode(_try(path, place, fallback=fallback)), seconds)
        probed = msgspec.json.decode(answer, type=_Found)
    except ChildTimedOut as error:
        return Unusable(path, f"{error} (is its storage stuck?)", hangs=True)
    except ChildFailed as error:
        return Unusable(path, str(error))
    if probed.why:
        return Unusable(path, probed.why)
    room = min(probed.room, spare_memory()) if lies_in_memory(place) else probed.room
    if room < (needed := needs(room)):
        if place != path:
            leave(place)
        return Unusable(path, f"has room for {room >> 20} MB, and about {(needed >> 20) + 1} may be needed")
    return ScratchPlace(place, room, made=place != path)


def _try(path: Path, place: Path, *, fallback: bool) -> _Found:
    try:
        if store.is_of_store(path):
            store.provide(path)
        elif not fallback:
            private.provide(path)
        elif not private.keeps(path):
            return _Found(why="whoever owns it could take our folder away")
        elif place != path:
            os.close(private.make(place))
        _write_unseen(place)
        there = os.statvfs(place)
    except OSError as error:
        return _Found(why=error.strerror or str(error))
    return _Found(room=there.f_bavail * there.f_frsize)


def leave(place: Path) -> None:
    """Remove a place that was made for this capture, if nothing is in it."""

    def work() -> bytes:
        os.rmdir(place)
        return b""

    with contextlib.suppress(ChildTimedOut, ChildFailed):
        in_child(work, PROBE_SECONDS)


def _write_unseen(folder: Path) -> None:
    """Write and fsync a file that has no name, so that nothing is left of it whatever ends us; or a named one."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:  # NFS and FUSE know no such files
            raise
        named = folder / f".autopsy-{private.token()}.probe"
        with private.new(named) as stream:
            named.unlink()
            _write_through(os.dup(stream.fileno()))
    else:
        _write_through(descriptor)


def _write_through(descriptor: int) -> None:
    try:
        os.write(descriptor, b"autopsy\n" * 512)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def memory_places() -> tuple[Path, ...]:
    """Return the usual directories in memory that are really there, and where our folder stays ours."""
    return tuple(path for path in MEMORY if lies_in_memory(path) and private.keeps(path))
