"""Lists the bundles of files, folders and buckets, each with a stamp that says which file it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.fleet.places.opening import is_bucket, open_place

ENDINGS = (".tar.zst", ".tar.zst.age")
DEEPEST = 8
REMEDY = "give bundles (.tar.zst), folders of them, or s3://, gs:// or az://BUCKET/…"


class SourceBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle where it lies: a path of this host, or a key of a bucket.

    `place` is the bucket's address, empty for a path; `version` is what changes where the file does.
    """

    name: str
    size: int
    version: str
    place: str = ""
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several runs that share the bundles; `number` counts from 1."""

    number: int
    of: int

    def takes(self, stamp: str) -> bool:
        """Tell whether a bundle is this run's, which is the same whoever asks, and in whichever order."""
        return int(stamp[:8], 16) % self.of == self.number - 1


WHOLE = Shard(1, 1)


def shard_of(text: str) -> Shard:
    """Return what `I/N` means.

    Raises:
        UsageError: nothing.
    """
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and len(text) < 16 and 1 <= int(number) <= int(of)):
        raise UsageError(text, "is no share of the work", remedy="say --shard 1/8 up to --shard 8/8")
    return Shard(int(number), int(of))


def list_bundles(sources: tuple[str, ...], shard: Shard = WHOLE) -> Iterator[SourceBundle]:
    """Yield each bundle once, in an order of its own: no name, no hypervisor and no day comes first.

    Raises:
        UsageError: there is nothing at one of these places.
        AutopsyError: a bucket cannot be listed.
    """
    bundles: dict[str, SourceBundle] = {}
    for source in sources:
        for bundle in _of_bucket(source) if is_bucket(source) else _of_path(Path(source)):
            stamped = msgspec.structs.replace(bundle, stamp=_stamp(bundle))
            if shard.takes(stamped.stamp):
                bundles.setdefault(stamped.stamp, stamped)
    yield from (bundles[stamp] for stamp in sorted(bundles))


def _stamp(bundle: SourceBundle) -> str:
    """Return what stands for this file and no other, and does not tell its name."""
    identity = f"{bundle.place}\0{bundle.name}\0{bundle.size}\0{bundle.version}"
    return blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _of_bucket(address: str) -> Iterator[SourceBundle]:
    for file in open_place(address).files():
        if file.key.endswith(ENDINGS):
            yield SourceBundle(name=file.key, size=file.size, version=file.version, place=address)


def _of_path(path: Path) -> Iterator[SourceBundle]:
    if not path.exists():
        raise UsageError(str(path), "there is no such file or folder", remedy=REMEDY)
    path = path.absolute()
    if path.is_dir():
        yield from _below(path, DEEPEST)
    else:
        yield _bundle(path)


def _below(folder: Path, depth: int) -> Iterator[SourceBundle]:
    """Yield the bundles of a folder: no link is followed, and what cannot be read holds none."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return
    if any(entry.name == layout.MANIFEST and entry.is_file(follow_symlinks=False) for entry in visible):
        yield _bundle(folder)
        return
    for entry in visible:
        if entry.is_file(follow_symlinks=False) and entry.name.endswith(ENDINGS):
            yield _bundle(folder / entry.name)
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from _below(folder / entry.name, depth - 1)


def _bundle(path: Path) -> SourceBundle:
    status = (path / layout.MANIFEST if path.is_dir() else path).stat()
    return SourceBundle(name=str(path), size=status.st_size, version=str(status.st_mtime_ns))
