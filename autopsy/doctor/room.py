"""How much room there is where a capture works, and where its bundle goes."""

from __future__ import annotations

import os
from pathlib import Path

from autopsy.capture.staging.places import ScratchPlace, Unusable, probe
from autopsy.doctor.checks import Check, lacks, note, ok
from autopsy.errors import NotStored
from autopsy.files.scratch_place import scratch_place
from autopsy.store.place import store_path

WANTED = 1 << 30  # a core is bounded at half of it, and is there twice for a while
SCRATCH = "room to work in"
STORE = "room in the store"


def room() -> tuple[Check, ...]:
    """Return whether a capture has room to work in, and its bundle a place.

    What is written to try it has no name and is gone at once.
    """
    try:
        place = Path(scratch_place())
    except NotStored as error:
        return (lacks(SCRATCH, str(error), error.remedy), _tried(STORE, store_path()))
    return (_tried(SCRATCH, place), _tried(STORE, store_path()))


def _tried(name: str, place: Path) -> Check:
    if not os.path.isdir(place):
        return note(name, f"{place} is not there yet: it is made when it is needed")
    match probe(place):
        case ScratchPlace(room=free) if free >= WANTED:
            return ok(name, f"{place}: {free / 1e9:.0f} GB free")
        case ScratchPlace(room=free):
            return note(name, f"{place}: {free / 1e6:.0f} MB free", "a large VM's core is bounded at 512 MB: make room")
        case Unusable(why=why):
            return lacks(name, f"{place}: {why}", "set TMPDIR, or give --out, a place that answers")
