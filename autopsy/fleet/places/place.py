"""A folder or a bucket, by its address: what is put there is whole, and never put over anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from autopsy.dataclass import dataclass
from autopsy.errors import AutopsyError, ExitCode


class PlaceRefused(AutopsyError):
    """The place is there and does not let us: to try again helps nothing."""

    exit_code = ExitCode.NOT_PERMITTED


class PlaceFailed(AutopsyError):
    """The place did not answer, or had no room: a later try may do."""

    exit_code = ExitCode.NOT_STORED


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a place, by its key below the place's own; `version` changes where its content does."""

    key: str
    size: int
    version: str
    modified: float


class Place(Protocol):
    """What folders and buckets have in common."""

    def put_new(self, key: str, file: Path) -> bool:
        """Put a file there, whole or not at all; return False where its key was taken, which then stays.

        Raises:
            PlaceRefused: it may not be put there.
            PlaceFailed: it could not be put there now.
        """

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield every file whose key is below the prefix.

        Raises:
            PlaceRefused: they may not be listed.
            PlaceFailed: they could not be listed now.
        """

    def take(self, key: str, destination: Path) -> None:
        """Copy a file to a new one.

        Raises:
            PlaceRefused: it may not be read.
            PlaceFailed: it could not be read now.
        """

    def remove(self, key: str) -> None:
        """Remove a file.

        Raises:
            PlaceRefused: it may not be removed.
            PlaceFailed: it could not be removed now.
        """
