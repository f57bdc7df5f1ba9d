"""Brings the parts of an index to this host, each once: a part never changes."""

from __future__ import annotations

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

from autopsy.errors import UsageError
from autopsy.files import private
from autopsy.fleet.index.parts import ENDING, NAME, PARTITION
from autopsy.fleet.places.opening import is_bucket, open_place
from autopsy.store import place as store

CACHE = "index"  # of the store: what is in it can be fetched again


def local_parts(address: str, analyzer: str = "") -> tuple[Path, ...]:
    """Return the parts of an index, or those of one analyzer, as files of this host.

    Raises:
        AutopsyError: the place cannot be listed or read.
    """
    place = open_place(address)
    prefix = f"{PARTITION}{analyzer}" if analyzer else ""
    stored = [file for file in place.files(prefix) if NAME.fullmatch(file.key)]
    if not is_bucket(address):
        return tuple(Path(address).absolute() / file.key for file in stored)
    folder = _cache(address)
    parts = []
    for file in stored:
        here = folder / file.key.replace("/", "_")
        if not here.is_file() or here.stat().st_size != file.size:
            half = here.with_name(f".{here.name}.{private.token()}{private.HALF}")
            try:
                place.take(file.key, half)
                os.utime(half, (file.modified, file.modified))  # the newest part tells the newest analyzer
                half.rename(here)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    half.unlink()
        parts.append(here)
    return tuple(parts)


def some_parts(address: str, analyzer: str = "") -> tuple[Path, ...]:
    """Return them.

    Raises:
        UsageError: there is none.
        AutopsyError: the place cannot be listed or read.
    """
    parts = local_parts(address, analyzer)
    if not parts:
        whose = f" of analyzer {analyzer}" if analyzer else ""
        raise UsageError(
            address, f"holds no {ENDING} part of an index{whose}", remedy="`autopsy fleet diagnose` makes some"
        )
    return parts


def _cache(address: str) -> Path:
    """Return the folder of our own that a bucket's parts are kept in."""
    folder = store.store_path() / CACHE
    store.provide(folder)
    with private.held(folder) as held:
        os.close(private.enter(held, blake2b(address.encode(), digest_size=8).hexdigest()))
    return folder / blake2b(address.encode(), digest_size=8).hexdigest()
