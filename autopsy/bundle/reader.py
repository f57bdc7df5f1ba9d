"""Opens a bundle, be it a sealed tarball, an unpacked folder, or the staging folder of a capture that was killed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.archive import (
    LARGE,
    MOST_ALTOGETHER,
    MOST_IN_MEMORY,
    MOST_MEMBERS,
    members,
    open_archive,
    safe_name,
)
from autopsy.bundle.manifest import SCHEMA, Manifest
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle, NewerBundle
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_beneath


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
        return read_below(self.path, name)

    def extract(self, name: str, destination: Path) -> bool:
        """Copy one file, however large, to a new one; return whether the bundle holds it."""
        if name not in self.listing:
            return False
        with private.new(destination) as stream:
            self.pour(name, stream)
        return True

    def pour(self, name: str, stream: BinaryIO) -> None:
        """Write one file's bytes, however many.

        Raises:
            NotPlain: it is not one of the bundle's files, or a link by now.
        """
        if not self.sealed:
            with open(open_below(self.path, name), "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
            return
        for member in members(self.path):
            if member.name == name:
                stream.writelines(member.parts())
                return


def open_bundle(path: Path) -> Bundle:
    """Open a tarball or a folder.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: it is no bundle, or only part of one.
        NewerBundle: its schema is newer than ours.
    """
    return open_folder(path) if path.is_dir() else _open_archive(path)


def open_folder(path: Path) -> Bundle:
    """Open a folder; nothing is unpacked, whatever lies there by now.

    Raises:
        DamagedBundle: it is no bundle, or only part of one.
        NewerBundle: its schema is newer than ours.
    """
    manifest = decode_manifest(path, read_below(path, layout.MANIFEST))
    return Bundle(path, manifest, sealed=False, files={}, listing=plain_files(path))


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A bundle that was opened, and of which nothing was read yet: whoever does may be unable to open it any more.

    `descriptor` is an archive's; `files` are the plain files of a folder, without its cores and its binary.
    """

    path: Path
    descriptor: int | None
    files: dict[str, bytes]

    def read(self) -> Bundle:
        """Return the bundle.

        Raises:
            DamagedBundle: it is no bundle, or only part of one.
            NewerBundle: its schema is newer than ours.
        """
        if self.descriptor is not None:
            return _open_archive(self.path, self.descriptor)
        manifest = decode_manifest(self.path, self.files.get(layout.MANIFEST, b""))
        return Bundle(self.path, manifest, sealed=True, files=self.files, listing=tuple(sorted(self.files)))


def hold(path: Path) -> OpenedBundle:
    """Open a tarball, or read a folder's files as they are.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: it is a folder that holds more than any bundle does, or cannot be read.
    """
    if not path.is_dir():
        return OpenedBundle(path, open_archive(path), {})
    files: dict[str, bytes] = {}
    room = MOST_ALTOGETHER
    for name in plain_files(path):
        if name in LARGE:
            continue
        files[name] = read_below(path, name)
        room -= len(files[name])
        if room < 0 or len(files) > MOST_MEMBERS:
            raise DamagedBundle(str(path), "holds more than any bundle does", remedy="do not trust it")
    return OpenedBundle(path, None, files)


def _open_archive(path: Path, descriptor: int | None = None) -> Bundle:
    files: dict[str, bytes] = {}
    listing: list[str] = []
    for member in members(path, descriptor):
        listing.append(member.name)
        if member.name in LARGE:
            continue
        files[member.name] = b"".join(member.parts())
    manifest = decode_manifest(path, files.get(layout.MANIFEST, b""))
    if missing := {record.path for record in manifest.files} - set(listing):
        raise DamagedBundle(str(path), f"{min(missing)} is missing", remedy="copy the bundle again; do not trust it")
    return Bundle(path, manifest, sealed=True, files=files, listing=tuple(listing))


def decode_manifest(path: Path, data: bytes) -> Manifest:
    """Return the manifest, after a look at its schema number alone: a newer one may not decode at all."""
    if not data:
        raise DamagedBundle(str(path), f"holds no {layout.MANIFEST}", remedy="is it an autopsy bundle?")
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
        raise DamagedBundle(str(path), f"{layout.MANIFEST}: {error}", remedy="do not trust it") from error


class _SchemaOnly(msgspec.Struct, frozen=True):
    schema: int


def open_below(folder: Path, name: str) -> int:
    """Open a file of a folder that a stranger may have made: no link is followed, no FIFO waited for.

    Raises:
        NotPlain: it is no regular file, or not below.
        OSError: as open(2) gives it.
    """
    with private.anybodys(folder) as top:
        return open_beneath(top, safe_name(name))


def read_below(folder: Path, name: str) -> bytes:
    """Return a small file of a folder that a stranger may have made, empty where there is none.

    Raises:
        DamagedBundle: it is larger than evidence can be.
    """
    try:
        descriptor = open_below(folder, name)
    except (OSError, ValueError, NotPlain):
        return b""
    with open(descriptor, "rb") as stream:
        if os.fstat(descriptor).st_size > MOST_IN_MEMORY:
            raise DamagedBundle(str(folder / name), "is larger than evidence can be", remedy="do not trust it")
        return stream.read(MOST_IN_MEMORY + 1)


def plain_files(folder: Path) -> tuple[str, ...]:
    """Return the plain files below a folder."""
    names = [str(Path(parent, file).relative_to(folder)) for parent, _, files in os.walk(folder) for file in files]
    return tuple(sorted(name for name in names if _is_plain(folder / name)))


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
