"""Keeps the store from growing without end, after a capture that went there."""

from __future__ import annotations

from pathlib import Path

import msgspec

from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.store.place import is_of_store
from autopsy.store.removal import make_room

SECONDS = 5.0
REMEDY = "`autopsy rm --older 30d` makes room"


def tidy(bundle: Path, seconds: float = SECONDS) -> tuple[str, ...]:
    """Throw away what nobody asked to keep where the store has grown too large; return what is worth telling.

    It takes no longer than `seconds`, and never raises: a capture is worth more than a tidy store.
    """
    if not is_of_store(bundle.parent):
        return ()
    try:
        return msgspec.json.decode(in_child(_tidy, min(seconds, SECONDS)), type=tuple[str, ...])
    except (ChildTimedOut, ChildFailed) as error:
        return (f"the store could not be looked through: {error}",)


def _tidy() -> bytes:
    gone, room = make_room()
    notes = []
    if gone:
        notes.append(f"the store was too large: {len(gone)} expendable captures were removed, the oldest first")
    if room.used > room.most:
        notes.append(f"the store takes {_gb(room.used)}, more than the {_gb(room.most)} that it should: {REMEDY}")
    elif room.short:
        notes.append(f"the store's file system has only {_gb(room.free)} left: {REMEDY}")
    return msgspec.json.encode(notes)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
