"""Removes captures from the store: those of a certain age, and what nobody asked to keep where room is short."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.files import private
from autopsy.store.entries import StoredBundle, entries
from autopsy.store.place import store_path

UNITS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AGE = re.compile(r"([0-9]{1,6})(min|h|d|w)")

# As systemd-coredump has them: MaxUse= and KeepFree= of coredump.conf(5).
MOST_SHARE, FREE_SHARE = 0.10, 0.15
MOST_BYTES = FREE_BYTES = 4 << 30


def seconds_of(age: str) -> int:
    """Return an age in seconds.

    Raises:
        UsageError: it is none.
    """
    match = AGE.fullmatch(age.strip())
    if match is None:
        raise UsageError(age, "is no age", remedy="say for example --older 30d; units are min, h, d and w")
    return int(match[1]) * UNITS[match[2]]


def remove(these: Iterable[StoredBundle]) -> None:
    """Remove bundles with what stands beside them."""
    for entry in these:
        with private.held(entry.folder) as folder:
            for name in entry.files:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)


@dataclass(frozen=True, slots=True)
class Room:
    """What the store takes and may take, and what its file system has left and should keep, in bytes."""

    used: int
    most: int
    free: int
    keep: int

    @property
    def short(self) -> int:
        """Return how many bytes must go, 0 where all is well."""
        return max(0, self.used - self.most, self.keep - self.free)


def room(stored: Iterable[StoredBundle], store: Path | None = None) -> Room:
    """Return how much the store takes beside what it may take.

    Raises:
        OSError: there is no store.
    """
    disk = os.statvfs(store or store_path())
    whole = disk.f_blocks * disk.f_frsize
    return Room(
        used=sum(entry.size for entry in stored),
        most=min(int(whole * MOST_SHARE), MOST_BYTES),
        free=disk.f_bavail * disk.f_frsize,
        keep=min(int(whole * FREE_SHARE), FREE_BYTES),
    )


def superfluous(stored: tuple[StoredBundle, ...], short: int) -> tuple[StoredBundle, ...]:
    """Return what goes so that so many bytes come free: the oldest of what is expendable, and never the newest of all.

    What a person asked for is not among it, however short the room.
    """
    gone: list[StoredBundle] = []
    for entry in stored[:-1]:
        if short <= 0:
            break
        if entry.expendable:
            gone.append(entry)
            short -= entry.size
    return tuple(gone)


def make_room(store: Path | None = None) -> tuple[tuple[StoredBundle, ...], Room]:
    """Throw away what nobody asked to keep where the store has grown too large; return it, and the room after that.

    Raises:
        OSError: there is no store, or it is not ours.
    """
    stored = entries(store)
    gone = superfluous(stored, room(stored, store).short)
    remove(gone)
    left = tuple(entry for entry in stored if entry not in gone)
    return gone, room(left, store)
