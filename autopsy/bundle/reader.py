"""Opens a bundle, be it a sealed tarball, an unpacked folder, or the staging folder of a capture that was killed."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from autopsy.bundle import layout as names
from autopsy.bundle.archive import LARGE, MOST_IN_MEMORY, members, safe_name
from autopsy.bundle.manifest import SCHEMA, Manifest
from autopsy.errors import DamagedBundle, NewerBundle, UsageError


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Small files are read at once from a tarball and on demand from a folder.

    `sealed` tells a tarball from a folder, which may still be growing.
    """

    path: Path
    manifest: Manifest
    sealed: bool
    files: dict[str, bytes]
    listing: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Return the paths of all files, large ones too."""
        return self.listing

    def read(self, name: str) -> bytes:
        """Return a file's bytes, empty when the bundle does not hold it. The core and the binary are not read so."""
        if self.sealed:
            return self.files.get(name, b"")
        return _read_below(self.path, name)

    def extract(self, name: str, destination: Path) -> bool:
        """Copy one file, however large, to `destination`; return whether the bundle holds it."""
        if not self.sealed:
            source = self.path / safe_name(name)
            if not _is_plain(source):
                return False
            shutil.copyfile(source, destination)
            return True
        for member in members(self.path):
            if member.name == name:
                with open(destination, "xb") as stream:
                    stream.writelines(member.parts())
                return True
        return False


def open_bundle(path: Path) -> Bundle:
    """Open a tarball or a folder.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: it is no bundle, or only part of one.
        NewerBundle: its schema is newer than ours.
    """
    if path.is_dir():
        manifest = decode_manifest(path, _read_below(path, names.MANIFEST))
        return Bundle(path, manifest, sealed=False, files={}, listing=_listing(path))
    if not path.exists():
        raise UsageError(str(path), "there is no such file", remedy="give a bundle (.tar.zst) or its folder")
    files: dict[str, bytes] = {}
    listing: list[str] = []
    for member in members(path):
        listing.append(member.name)
        if member.name in LARGE:
            continue
        files[member.name] = b"".join(member.parts())
    manifest = decode_manifest(path, files.get(names.MANIFEST, b""))
    if missing := {record.path for record in manifest.files} - set(listing):
        raise DamagedBundle(str(path), f"{min(missing)} is missing", remedy="copy the bundle again; do not trust it")
    return Bundle(path, manifest, sealed=True, files=files, listing=tuple(listing))


def decode_manifest(path: Path, data: bytes) -> Manifest:
    """Return the manifest, after a look at its schema number alone: a newer one may not decode at all."""
    if not data:
        raise DamagedBundle(str(path), f"holds no {names.MANIFEST}", remedy="is it an autopsy bundle?")
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
        if schema > SCHEMA:
            raise NewerBundle(
                str(path),
                f"was written with schema {schema}; this autopsy reads up to {SCHEMA}",
                remedy="upgrade autopsy: pipx upgrade autopsy",
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DamagedBundle(str(path), f"{names.MANIFEST}: {error}", remedy="do not trust it") from error


class _SchemaOnly(msgspec.Struct, frozen=True):
    schema: int


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _read_below(folder: Path, name: str) -> bytes:
    """Return a file of a folder that a stranger may have made: no link is followed, no FIFO waited for."""
    try:
        path = folder / safe_name(name)
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    with open(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            return b""
        if status.st_size > MOST_IN_MEMORY:
            raise DamagedBundle(str(path), "is larger than evidence can be", remedy="do not trust it")
        return stream.read(MOST_IN_MEMORY + 1)


def _listing(folder: Path) -> tuple[str, ...]:
    found = [str(Path(parent, file).relative_to(folder)) for parent, _, files in os.walk(folder) for file in files]
    return tuple(sorted(name for name in found if _is_plain(folder / name)))
