"""Writes down in a working folder where its bundle is to go, for whoever seals it if its capture is killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_beneath

FOLDER = f"{layout.SCRATCH}-destination"  # of no bundle and no copy
FILE = "places.json"
MOST_BYTES = 1 << 16


def write_down(work: int, places: Sequence[Path]) -> None:
    """Store the places of a capture in its working folder, which is held, the best first.

    Raises:
        OSError: it cannot be written.
    """
    folder = private.enter(work, FOLDER)
    try:
        with private.new(FILE, below=folder) as stream:
            stream.write(msgspec.json.encode([str(place) for place in places]))
    finally:
        os.close(folder)


def read(work: Path) -> tuple[Path, ...]:
    """Return the places that a killed capture was to put its bundle in; none where it had not begun to."""
    try:
        with private.held(work) as folder, open(open_beneath(folder, f"{FOLDER}/{FILE}"), "rb") as stream:
            return tuple(map(Path, msgspec.json.decode(stream.read(MOST_BYTES), type=tuple[str, ...])))
    except (OSError, NotPlain, msgspec.DecodeError):
        return ()
