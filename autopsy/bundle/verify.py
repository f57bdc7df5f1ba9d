"""Reads a whole bundle back and compares every file with what its manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from autopsy.bundle import layout
from autopsy.bundle.archive import MOST_IN_MEMORY, members, open_archive
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import decode_manifest, open_below, plain_files, read_below
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle
from autopsy.files.plain import NotPlain


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose every byte is as it was sealed; `sha256` is of the tarball, empty for a folder."""

    manifest: Manifest
    sha256: str
    files: int


def verify(path: Path) -> Verified:
    """Compare all files with the manifest.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: a file is missing, added, or differs; the message names the first.
    """
    if path.is_dir():
        return compare(path, read_folder(path))
    descriptor = open_archive(path)
    try:
        return verify_archive(path, descriptor)
    finally:
        os.close(descriptor)


def verify_archive(path: Path, descriptor: int) -> Verified:
    """Compare the files of an archive that is open with its manifest; `path` is what messages call it.

    What was hashed is what was unpacked: the archive is read once.

    Raises:
        DamagedBundle: as `verify` raises it.
    """
    manifest_data = b""
    files: dict[str, tuple[int, str]] = {}
    digest = hashlib.sha256()
    for member in members(path, descriptor, watch=digest.update):
        if member.name == layout.MANIFEST:
            manifest_data = b"".join(member.parts()) if member.size <= MOST_IN_MEMORY else b""
        else:
            files[member.name] = _digest(member.parts())
    return compare(path, Read(manifest_data, files, digest.hexdigest()))


@dataclass(frozen=True, slots=True)
class Read:
    """A bundle's manifest as it lies there, size and digest of each other file, and the tarball's own digest."""

    manifest: bytes
    files: dict[str, tuple[int, str]]
    sha256: str = ""


def read_folder(path: Path) -> Read:
    """Read every file of a folder, and ask nothing of what it means.

    Raises:
        DamagedBundle: its manifest is larger than any is.
    """
    files = {name: _digest_below(path, name) for name in plain_files(path) if name != layout.MANIFEST}
    return Read(read_below(path, layout.MANIFEST), files)


def compare(path: Path, contents: Read) -> Verified:
    """Compare what was read of a bundle with what its manifest says.

    Raises:
        DamagedBundle: a file is missing, added, or differs; the message names the first.
    """
    manifest = decode_manifest(path, contents.manifest)
    if not contents.sha256 and not manifest.files:
        raise DamagedBundle(
            str(path),
            "is the staging folder of a capture that did not end: it was never sealed",
            remedy=f"`autopsy seal {path}` seals what is there",
        )
    _compare(path, manifest, dict(contents.files))
    return Verified(manifest, contents.sha256, len(manifest.files))


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


def _compare(path: Path, manifest: Manifest, files: dict[str, tuple[int, str]]) -> None:
    remedy = "the bundle was damaged or altered after it was sealed: do not rest a verdict on it"
    for record in manifest.files:
        if record.path not in files:
            raise DamagedBundle(str(path), f"{record.path} is missing", remedy=remedy)
        if files.pop(record.path) != (record.size, record.sha256):
            raise DamagedBundle(str(path), f"{record.path} is not what was sealed", remedy=remedy)
    if files:
        raise DamagedBundle(str(path), f"{min(files)} was added", remedy=remedy)
