"""Reads a whole bundle back and compares every file with what its manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.archive import MOST_IN_MEMORY, members
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import decode_manifest, open_below, open_bundle
from autopsy.errors import DamagedBundle
from autopsy.files.plain import NotPlain


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose every byte is as it was sealed; `sha256` is of the tarball, empty for a folder."""

    manifest: Manifest
    sha256: str
    files: int


def verify(path: Path, *, from_disk: bool = False) -> Verified:
    """Compare all files with the manifest. With `from_disk` the page cache is dropped first, as far as it lets us.

    Raises:
        DamagedBundle: a file is missing, added, or differs; the message names the first.
    """
    if path.is_dir():
        return _verify_folder(path)
    if not path.exists():
        open_bundle(path)  # says so in its own words
    if from_disk:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    manifest_data = b""
    found: dict[str, tuple[int, str]] = {}
    for member in members(path):
        if member.name == layout.MANIFEST:
            manifest_data = b"".join(member.parts()) if member.size <= MOST_IN_MEMORY else b""
        else:
            found[member.name] = _digest(member.parts())
    manifest = decode_manifest(path, manifest_data)
    _compare(path, manifest, found)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Verified(manifest, digest, len(manifest.files))


def _verify_folder(path: Path) -> Verified:
    bundle = open_bundle(path)
    found: dict[str, tuple[int, str]] = {}
    for name in bundle.names():
        if name != layout.MANIFEST:
            found[name] = _digest_below(path, name)
    if not bundle.manifest.files:
        raise DamagedBundle(
            str(path),
            "is the staging folder of a capture that did not end: it was never sealed",
            remedy=f"`autopsy seal {path}` seals what is there",
        )
    _compare(path, bundle.manifest, found)
    return Verified(bundle.manifest, "", len(bundle.manifest.files))


def _digest_below(path: Path, name: str) -> tuple[int, str]:
    try:
        descriptor = open_below(path, name)
    except (NotPlain, ValueError):  # it is none of ours: that it is there is told
        return 0, ""
    with open(descriptor, "rb") as stream:
        return _digest(iter(lambda: stream.read(1 << 20), b""))


def _digest(parts: Iterator[bytes]) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()


def _compare(path: Path, manifest: Manifest, found: dict[str, tuple[int, str]]) -> None:
    remedy = "the bundle was damaged or altered after it was sealed: do not rest a verdict on it"
    for record in manifest.files:
        if record.path not in found:
            raise DamagedBundle(str(path), f"{record.path} is missing", remedy=remedy)
        if found.pop(record.path) != (record.size, record.sha256):
            raise DamagedBundle(str(path), f"{record.path} is not what was sealed", remedy=remedy)
    if found:
        raise DamagedBundle(str(path), f"{min(found)} was added", remedy=remedy)
