"""Seals what killed captures left behind, and clears it away once the bundle is verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.reader import open_folder
from autopsy.bundle.seal import Sealed, half_written, seal_in
from autopsy.capture.staging import destination, leftovers
from autopsy.errors import AutopsyError, DamagedBundle, NotStored, UsageError
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.store import place as store

RESCUE_SECONDS = 20.0


def seal_leftover(folder: Path, place: Path | None) -> Sealed:
    """Seal the staging folder of a capture that was killed; the bundle takes the place of its folders.

    The durable copy of a capture that was killed before its last step was copied is one step poorer than the working
    folder in memory: that one is taken where it is still there. Without a place, the bundle goes where its capture was
    to put it.

    Raises:
        UsageError: it is sealed already, or its capture is still at work.
        DamagedBundle: it is no staging folder.
        NotStored: the bundle could not be written.
    """
    folder = folder.absolute()
    _must_be_ours(folder)
    fuller = leftovers.twin(folder)
    for staged in filter(None, (folder, fuller)):
        if staged.is_dir() and staged.name.endswith((layout.WORK, layout.PARTIAL)):
            _must_be_left(staged, folder)
    destinations = (place.absolute(),) if place else (*destination.read(fuller or folder), folder.parent)
    sealed = _seal_where_told(fuller or folder, destinations)
    for staged in filter(None, (folder, fuller)):
        _clear(staged)
    return sealed


def _must_be_left(staged: Path, folder: Path) -> None:
    try:
        if leftovers.at_work(staged):
            remedy = "wait for its end, or press Ctrl-C there"
            raise UsageError(str(folder), "its capture is still at work", remedy=remedy)
    except leftovers.CannotLook as error:
        remedy = "try again; where its file system hangs, wait for that"
        cause = f"whether its capture is still at work cannot be told: {error}"
        raise UsageError(str(folder), cause, remedy=remedy) from error


def _must_be_ours(folder: Path) -> None:
    """Refuse what somebody else made or may have added to: our seal would vouch for it."""
    try:
        os.close(private.hold(folder))
    except private.NotPrivate as error:
        raise UsageError(
            str(folder),
            f"{error.strerror}: that it is what a capture saw, nobody can vouch for",
            remedy="if you trust whoever made it: `cp -r` it to a folder of your own, and seal that",
        ) from error
    except OSError:
        return  # there is no such folder: that is told where it is opened


def _seal(folder: Path, place: Path) -> Sealed:
    if not folder.exists():
        raise UsageError(str(folder), "there is no such folder", remedy="give a capture's staging folder")
    manifest = open_folder(folder).manifest if folder.is_dir() else None
    if manifest is None or manifest.files:
        raise UsageError(str(folder), "is sealed already", remedy="`autopsy verify` tells whether it is whole")
    return seal_in(place, layout.of_folder(folder.name), folder, manifest, frozenset())


def _clear(folder: Path) -> None:
    """Remove what was sealed, with the halves of bundles that its capture was killed over."""
    if not folder.name.endswith((layout.WORK, layout.PARTIAL)):  # what a person copied elsewhere stays
        return
    with contextlib.suppress(OSError):
        private.remove(folder)
    begins = half_written(folder)
    with contextlib.suppress(OSError), os.scandir(folder.parent) as beside:
        for entry in beside:
            if entry.name.startswith(begins) and entry.name.endswith(layout.PARTIAL) and _is_our_file(entry):
                os.unlink(entry.path)


def _is_our_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def rescue(seconds: float = RESCUE_SECONDS) -> tuple[str, ...]:
    """Seal what killed captures left in memory, which is lost when the host goes down; never raises.

    It takes no longer than `seconds`; the next capture goes on with what is left.

    Each goes where it was told to, or to the store where that is gone. Returns what is worth telling: a line for each.
    """
    try:
        staged = leftovers.leftovers()
        if not staged:
            return ()
        seconds = min(seconds, RESCUE_SECONDS)
        data = in_child(lambda: msgspec.json.encode([_rescue(folder) for folder in staged]), seconds)
        return msgspec.json.decode(data, type=tuple[str, ...])
    except (ChildTimedOut, ChildFailed) as error:
        return (f"what killed captures left in memory could not be sealed: {error}",)


def _rescue(folder: Path) -> str:
    held = leftovers.claim(folder)  # until this child ends
    destinations = destination.read(folder)
    if held is None and (folder / layout.README).exists():
        return f"{folder} is sealed by another capture"
    try:
        sealed = _seal_where_told(folder, (*destinations, _store()))
    except DamagedBundle:
        if held is not None or not any(folder.iterdir()):
            _clear(folder)
        return f"{folder} held nothing: its capture was killed before it had begun"
    except NotStored as error:
        return f"a killed capture left {folder}; `autopsy seal {folder}` seals it ({error.cause})"
    except AutopsyError as error:
        return f"a killed capture left {folder}: {error.cause}"
    _clear(folder)
    for place in {sealed.path.parent, *destinations}:
        _clear(place / (folder.name.removesuffix(layout.WORK) + layout.PARTIAL))
    return f"what a killed capture left in memory is sealed now: {sealed.path}"


def _seal_where_told(folder: Path, places: Sequence[Path]) -> Sealed:
    """Seal into the first place that takes it.

    Raises:
        DamagedBundle: it is no staging folder.
        NotStored: no place takes it; what the last one said.
    """
    for place in places[:-1]:
        if place.is_dir():
            with contextlib.suppress(NotStored):
                return _seal(folder, place)
    return _seal(folder, places[-1])


def _store() -> Path:
    """Return the store, made where it can be: where not, that is told when something is put there."""
    with contextlib.suppress(OSError):
        store.provide(store.store_path())
    return store.store_path()
