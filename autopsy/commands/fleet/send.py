"""Sends bundles: puts them down in the spool, makes what is to go, puts that into its place, and forgets it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.commands.redact import redact
from autopsy.dataclass import dataclass
from autopsy.errors import AutopsyError, UsageError
from autopsy.files import private
from autopsy.files.scratch_place import scratch_place
from autopsy.fleet.places.backoff import TRIES
from autopsy.fleet.places.place import PlaceFailed
from autopsy.fleet.sending import send, spool
from autopsy.fleet.sending.send import Parcel, SentBundle
from autopsy.fleet.sending.spool import SpoolEntry

COPY = "copy.tar.zst"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one bundle: it is in its place, or waits on in the spool for a reason."""

    entry: SpoolEntry
    sent: SentBundle | None = None
    error: AutopsyError | None = None


def send_bundles(
    bundles: tuple[Path, ...],
    place: str,
    *,
    hide: bool = False,
    recipients: tuple[str, ...] = (),
    say: Callable[[str], None],
) -> tuple[Delivery, ...]:
    """Send these.

    Raises:
        UsageError: one is no sealed bundle, the place or a recipient is none.
        OSError: the spool is not ours, or has no room.
    """
    spool.check(bundles)
    for bundle in bundles:
        with _scratch() as folder:
            send.pack(bundle, folder)
    with spool.alone() as ours:
        queued = [spool.enqueue(bundle, place, redact=hide, recipients=recipients) for bundle in bundles]
        if not ours:
            say("another run sends already: these wait in the spool for it, or for the next")
            return tuple(Delivery(entry) for entry in queued)
        return tuple(_deliver(queued, say, TRIES))


def send_spooled(say: Callable[[str], None]) -> tuple[Delivery, ...]:
    """Send all that waits, each with one try: whoever starts this does so again.

    Raises:
        OSError: the spool is not ours.
    """
    with spool.alone() as ours:
        if not ours:
            say("another run sends already")
            return ()
        return tuple(_deliver(list(spool.entries()), say, 1))


def _deliver(queued: list[SpoolEntry], say: Callable[[str], None], tries: int) -> Iterator[Delivery]:
    """Make all that is to go first: what comes out of a bundle is read in a child, before there is a connection."""
    with _scratch() as folder:
        made: list[tuple[SpoolEntry, Parcel | AutopsyError]] = []
        for number, entry in enumerate(queued):
            try:
                made.append((entry, _made(entry, folder / str(number), say)))
            except AutopsyError as error:
                made.append((entry, error))
        dead: dict[str, PlaceFailed] = {}
        for entry, parcel in made:
            if isinstance(parcel, AutopsyError):
                yield _waits(entry, parcel)
            elif entry.note.place in dead:  # to ask it again would only take as long again
                yield _waits(entry, dead[entry.note.place])
            else:
                yield _put(entry, parcel, say, tries, dead)


def _put(
    entry: SpoolEntry, parcel: Parcel, say: Callable[[str], None], tries: int, dead: dict[str, PlaceFailed]
) -> Delivery:
    try:
        done = send.put(parcel, entry.note.place, tries=tries, say=say)
    except PlaceFailed as error:
        dead[entry.note.place] = error
        return _waits(entry, error)
    except AutopsyError as error:
        return _waits(entry, error)
    spool.sent(entry)
    return Delivery(entry, sent=done)


def _waits(entry: SpoolEntry, error: AutopsyError) -> Delivery:
    spool.failed(entry, str(error))
    return Delivery(entry, error=error)


def _made(entry: SpoolEntry, folder: Path, say: Callable[[str], None]) -> Parcel:
    """Return what is to go of an entry.

    Raises:
        AutopsyError: it is gone, is no bundle, or a recipient is none.
    """
    source = entry.file
    if not source.is_file():
        raise UsageError(
            entry.note.bundle, "is gone: it was removed before it was sent", remedy=f"rm {entry.path} forgets it"
        )
    private.provide(folder)
    if entry.note.redact:
        done = redact(source, folder / COPY)
        say(f"the map of the pseudonyms in the copy that is sent is yours alone: {done.map}")
        source = done.sealed.path
    return send.pack(source, folder, entry.note.recipients)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="autopsy-send-", dir=scratch_place()) as folder:
        yield Path(folder)
