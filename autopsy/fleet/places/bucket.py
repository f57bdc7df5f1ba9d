"""A bucket of an object store as a place: S3, Google's, Azure's, by the credentials of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain
from autopsy.fleet.places.place import PlaceFailed, PlaceRefused, StoredFile

# For one request; an upload has as long as a slow link takes. Who tries again is `send`, not the library.
SECONDS = 60
SLOWEST = 32 << 10  # bytes a second
CONNECT = "10s"
LISTED_AT_ONCE = 1000
# What is larger goes in several requests, and over what has the same digest: the rest is held in memory meanwhile.
LARGE = 256 << 20


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Files below one address. A put is one request, which the store takes whole or not at all."""

    address: str
    slowest: int = SLOWEST

    def put_new(self, key: str, file: Path) -> bool:
        """Put a file there, whole or not at all; see `Place`. To put is all that its credentials must be allowed."""
        import obstore  # noqa: PLC0415 - only a bucket needs it
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415 - likewise

        with self._told(key), open(open_plain(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            store = self._opened(SECONDS + size / self.slowest)
            try:
                if size > LARGE:
                    obstore.put(store, key, stream)
                else:
                    obstore.put(store, key, stream, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield the files below a prefix."""
        import obstore  # noqa: PLC0415 - likewise

        with self._told(prefix):
            for some in obstore.list(self._opened(), prefix or None, chunk_size=LISTED_AT_ONCE):
                for entry in some:
                    version = entry["e_tag"] or entry["last_modified"].isoformat()
                    yield StoredFile(entry["path"], entry["size"], version, entry["last_modified"].timestamp())

    def take(self, key: str, destination: Path) -> None:
        """Copy a file to a new one; see `Place`."""
        import obstore  # noqa: PLC0415 - likewise

        with self._told(key), private.new(destination) as stream:
            for part in obstore.get(self._opened(), key):
                stream.write(part)

    def remove(self, key: str) -> None:
        """Remove a file; see `Place`."""
        import obstore  # noqa: PLC0415 - likewise

        with self._told(key):
            obstore.delete(self._opened(), key)

    def _opened(self, seconds: float = SECONDS) -> Any:  # noqa: ANN401 - the library's own union of stores
        from obstore.store import from_url  # noqa: PLC0415 - likewise

        return from_url(
            self.address,
            client_options={
                "timeout": f"{seconds:.0f}s",
                "connect_timeout": CONNECT,
                "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"},
            },
            retry_config={"max_retries": 0},
        )

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        from obstore import exceptions  # noqa: PLC0415 - likewise

        refused = (
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.InvalidPathError,
            exceptions.NotSupportedError,
            exceptions.UnknownConfigurationKeyError,
        )
        where = f"{self.address.rstrip('/')}/{key}"
        try:
            yield
        except (*refused, NotPlain, ValueError) as error:
            raise PlaceRefused(where, _first_line(error), remedy="see to its credentials and its address") from error
        except FileNotFoundError as error:
            raise PlaceRefused(where, "there is no such file or bucket", remedy="check its address") from error
        except (exceptions.BaseError, OSError) as error:
            raise PlaceFailed(where, _first_line(error), remedy="see whether it answers, and has room") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:500]
