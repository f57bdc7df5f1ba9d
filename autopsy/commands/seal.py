"""Seals what killed captures left behind, and clears it away once the bundle is verified."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from autopsy.bundle.reader import open_bundle
from autopsy.bundle.seal import Sealed, seal, unfinished
from autopsy.capture.staging import leftovers
from autopsy.capture.staging.leftovers import PARTIAL, WORK
from autopsy.errors import AutopsyError, DamagedBundle, NotStored, UsageError
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

RESCUE_SECONDS = 20.0


def seal_leftover(folder: Path, place: Path | None) -> Sealed:
    """Seal the staging folder of a capture that was killed; the bundle takes the place of its folders.

    The durable copy of a capture that was killed before its last step was copied is one step poorer than the working
    folder in memory: that one is taken where it is still there.

    Raises:
        UsageError: it is sealed already, or its capture is still at work.
        DamagedBundle: it is no staging folder.
        NotStored: the bundle could not be written.
    """
    folder = folder.absolute()
    fuller = leftovers.twin(folder)
    for each in filter(None, (folder, fuller)):
        if each.is_dir() and each.name.endswith((WORK, PARTIAL)) and leftovers.at_work(each):
            raise UsageError(
                str(folder), "its capture is still at work", remedy="wait for its end, or press Ctrl-C there"
            )
    sealed = _seal(fuller or folder, (place or folder.parent).absolute())
    for each in filter(None, (folder, fuller)):
        _clear(each)
    return sealed


def _seal(folder: Path, place: Path) -> Sealed:
    manifest = open_bundle(folder).manifest
    if not folder.is_dir() or manifest.files:
        raise UsageError(str(folder), "is sealed already", remedy="`autopsy verify` tells whether it is whole")
    return seal(folder, place / _bundle(folder), manifest)


def _bundle(folder: Path) -> str:
    return f"{folder.name.removesuffix(PARTIAL).removesuffix(WORK)}.tar.zst"


def _clear(folder: Path) -> None:
    if folder.name.endswith((WORK, PARTIAL)):  # what a person copied elsewhere stays
        shutil.rmtree(folder, ignore_errors=True)
        unfinished(folder.with_name(_bundle(folder))).unlink(missing_ok=True)  # it was killed while it sealed


def rescue(place: Path) -> tuple[str, ...]:
    """Seal into `place` what killed captures left in memory, which is lost when the host goes down; never raises.

    Returns what is worth telling: one line for each.
    """
    try:
        found = leftovers.leftovers()
        if not found:
            return ()
        data = in_child(lambda: msgspec.json.encode([_rescue(folder, place) for folder in found]), RESCUE_SECONDS)
        return msgspec.json.decode(data, type=tuple[str, ...])
    except (ChildTimedOut, ChildFailed) as error:
        return (f"what killed captures left in memory could not be sealed: {error}",)


def _rescue(folder: Path, place: Path) -> str:
    held = leftovers.claim(folder)  # until this child ends: no other capture rescues it as well
    try:
        sealed = _seal(folder, place)
    except DamagedBundle:
        if held is not None or not any(folder.iterdir()):
            _clear(folder)
        return f"{folder} held nothing: its capture was killed before it had begun"
    except NotStored as error:
        return f"a killed capture left {folder}; `autopsy seal {folder}` seals it ({error.cause})"
    except AutopsyError as error:
        return f"a killed capture left {folder}: {error.cause}"
    _clear(folder)
    _clear(place / (folder.name.removesuffix(WORK) + PARTIAL))
    return f"what a killed capture left in memory is sealed now: {sealed.path}"
