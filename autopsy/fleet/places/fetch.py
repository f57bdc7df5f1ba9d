"""Brings one bundle to where it can be diagnosed: out of its bucket, and out of its encryption."""

from __future__ import annotations

from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.fleet.places import sealed
from autopsy.fleet.places.opening import open_place
from autopsy.fleet.places.place import PlaceRefused
from autopsy.fleet.places.sources import ENDINGS, SourceBundle
from autopsy.text import printable

MOST_BUNDLE = 1 << 30  # bytes of a file that is fetched


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of this host; `error` says why there is none."""

    path: Path
    error: str = ""


def fetch(bundle: SourceBundle, folder: Path, identity: str) -> Fetched:
    """Return the bundle's file: where it lies already, or a copy in a folder of ours.

    Raises:
        PlaceFailed: its bucket does not answer, which says nothing of the bundle.
        UsageError: the identity is none.
    """
    path = Path(bundle.name)
    if bundle.size > MOST_BUNDLE:
        return Fetched(path, f"it has {bundle.size} bytes: that is more than any bundle has")
    try:
        if bundle.place:
            ending = next(ending for ending in reversed(ENDINGS) if bundle.name.endswith(ending))
            path = folder / f"{bundle.stamp}.fetched{ending}"
            path.unlink(missing_ok=True)  # of a try that was broken off
            open_place(bundle.place).take(bundle.name, path)
        if not path.name.endswith(sealed.ENDING):
            return Fetched(path)
        if not identity:
            return Fetched(path, "it is encrypted, and no --identity was given")
        plain = folder / f"{bundle.stamp}.tar.zst"
        sealed.decrypt(path, plain, Path(identity))
        return Fetched(plain)
    except (PlaceRefused, sealed.NotDecrypted) as error:
        return Fetched(path, printable(error.cause))
