"""From an address to the folder or the bucket that it means."""

from __future__ import annotations

import re
from pathlib import Path

from autopsy.errors import UsageError
from autopsy.fleet.places.bucket import BucketPlace
from autopsy.fleet.places.folder import FolderPlace
from autopsy.fleet.places.place import Place

BUCKET = re.compile(r"(?:s3|gs|az|abfss?|adl)://[^/\s]+(?:/\S*)?")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_bucket(address: str) -> bool:
    """Return whether an address is a bucket's.

    Raises:
        UsageError: it is an address, and none that we know.
    """
    if BUCKET.fullmatch(address):
        return True
    if ADDRESS.match(address):
        raise UsageError(address, "is no place that is known", remedy="give a folder, or s3://, gs:// or az://BUCKET/…")
    return False


def open_place(address: str) -> Place:
    """Return the place; nothing is asked of it yet.

    Raises:
        UsageError: it is none.
    """
    return BucketPlace(address) if is_bucket(address) else FolderPlace(Path(address).absolute())
