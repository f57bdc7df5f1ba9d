"""Puts one sealed bundle under the name that its content makes, and tries again where that may help."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.files.plain import NotPlain, open_plain
from autopsy.fleet.places import sealed
from autopsy.fleet.places.backoff import TRIES, patiently
from autopsy.fleet.places.opening import open_place

FOLDER = "bundles"
ENDING = ".tar.zst"
ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class SentBundle:
    """A bundle that is in its place. `new` is false where the very same one was there before."""

    key: str
    sha256: str
    size: int
    new: bool


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be put: a file, and the digest of what it was before it was encrypted."""

    file: Path
    sha256: str
    size: int

    @property
    def key(self) -> str:
        """Return where it goes; the same bundle goes to the same place, whoever it is encrypted to."""
        ending = ENDING + (sealed.ENDING if self.file.name.endswith(sealed.ENDING) else "")
        return f"{FOLDER}/{self.sha256[:2]}/{self.sha256}{ending}"


def pack(bundle: Path, folder: Path, recipients: tuple[str, ...] = ()) -> Parcel:
    """Return a sealed bundle as it is to be put; encrypted, it is a new file of a folder of ours.

    Raises:
        UsageError: it is no sealed bundle, or a recipient is none.
    """
    sha256, size = _digest(bundle)
    if not recipients:
        return Parcel(bundle, sha256, size)
    file = folder / f"{sha256}{ENDING}{sealed.ENDING}"
    sealed.encrypt(bundle, file, recipients)
    return Parcel(file, sha256, size)


def put(
    parcel: Parcel,
    place: str,
    *,
    tries: int = TRIES,
    say: Callable[[str], None] = lambda _: None,
) -> SentBundle:
    """Put it there. What fails may be put later: half of it is never there.

    Raises:
        PlaceRefused: it may not be put there.
        PlaceFailed: it could not be put there in so many tries.
    """
    new = patiently(lambda: open_place(place).put_new(parcel.key, parcel.file), tries=tries, say=say)
    return SentBundle(parcel.key, parcel.sha256, parcel.size, new)


def _digest(bundle: Path) -> tuple[str, int]:
    """Hash a sealed bundle; nothing of it is unpacked.

    Raises:
        UsageError: it is something else.
    """
    remedy = "give a sealed bundle (.tar.zst); `autopsy seal` makes one of what a killed capture left"
    try:
        with open(open_plain(bundle), "rb") as stream:
            begin = stream.read(len(ZSTD))
            digest = hashlib.sha256(begin)
            while data := stream.read(1 << 20):
                digest.update(data)
            size = stream.tell()
    except (OSError, NotPlain) as error:
        raise UsageError(str(bundle), f"cannot be read: {error}", remedy=remedy) from error
    if begin != ZSTD:
        raise UsageError(str(bundle), "is no sealed bundle", remedy=remedy)
    return digest.hexdigest(), size
