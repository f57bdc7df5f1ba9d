"""Bundles that wait to be sent: a note for each, and a second name of its file, so that it outlives the first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain
from autopsy.fleet.places.opening import is_bucket
from autopsy.store import place as store

SPOOL = "spool"  # of the store
NOTE = ".json"
FILE = ".tar.zst"
LOCK = "lock"
MOST_NOTE = 64 << 10


class SpoolNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent where. `why` says what went wrong the last time, and `tried` how often something did."""

    bundle: str
    place: str
    redact: bool = False
    recipients: tuple[str, ...] = ()
    queued: str = ""
    tried: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """One note with its files in the spool."""

    path: Path
    note: SpoolNote

    @property
    def file(self) -> Path:
        """Return the bundle: under its own name as long as it has that."""
        named = Path(self.note.bundle)
        return named if named.is_file() else self.path.with_suffix(FILE)


def spool_path() -> Path:
    """Return the spool's folder, whether or not it is there."""
    return store.store_path() / SPOOL


def enqueue(bundle: Path, place: str, *, redact: bool = False, recipients: tuple[str, ...] = ()) -> SpoolEntry:
    """Write down that a sealed bundle is to be sent, and return at once: nothing is read, hashed or sent here.

    `autopsy fleet send --spooled` sends it. The bundle may be removed meanwhile where the spool is on its file system.

    Raises:
        UsageError: the place is none.
        OSError: the spool is not ours, or has no room.
    """
    is_bucket(place)
    store.provide(spool_path())
    address = place if is_bucket(place) else str(Path(place).absolute())
    note = SpoolNote(
        bundle=str(bundle.absolute()),
        place=address,
        redact=redact,
        recipients=recipients,
        queued=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    entry = SpoolEntry(spool_path() / f"{private.token()}{private.token()}{NOTE}", note)
    _write(entry)
    with contextlib.suppress(OSError):  # another file system: the note has the bundle's own name
        os.link(bundle, entry.path.with_suffix(FILE), follow_symlinks=False)
    return entry


def entries() -> tuple[SpoolEntry, ...]:
    """Return what waits, the oldest first.

    Raises:
        OSError: the spool is not ours.
    """
    if not spool_path().is_dir():
        return ()
    with private.held(spool_path()) as folder:
        names = [name for name in os.listdir(folder) if name.endswith(NOTE) and not name.startswith(".")]
        spooled = [entry for name in names if (entry := _read(folder, name)) is not None]
    return tuple(sorted(spooled, key=lambda entry: (entry.note.queued, entry.path.name)))


def sent(entry: SpoolEntry) -> None:
    """Forget a bundle that is in its place."""
    for path in (entry.path.with_suffix(FILE), entry.path):
        path.unlink(missing_ok=True)


def failed(entry: SpoolEntry, why: str) -> None:
    """Write down that it is not there yet."""
    _write(SpoolEntry(entry.path, msgspec.structs.replace(entry.note, tried=entry.note.tried + 1, why=why)))


@contextmanager
def alone() -> Iterator[bool]:
    """Hold the spool; False where another run sends already."""
    store.provide(spool_path())
    with private.held(spool_path()) as folder:
        descriptor = os.open(LOCK, private.APPEND, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _write(entry: SpoolEntry) -> None:
    private.publish(entry.path, msgspec.json.encode(entry.note))


def _read(folder: int, name: str) -> SpoolEntry | None:
    try:
        with open(open_plain(name, below=folder), "rb") as stream:
            note = msgspec.json.decode(stream.read(MOST_NOTE), type=SpoolNote)
    except (OSError, NotPlain, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return SpoolEntry(spool_path() / name, note)


def check(bundles: tuple[Path, ...]) -> None:
    """Say at once where one is no file.

    Raises:
        UsageError: it is none.
    """
    for bundle in bundles:
        if not bundle.is_file():
            raise UsageError(
                str(bundle), "is no file", remedy="give sealed bundles (.tar.zst), and the place behind them"
            )
