"""Packs a staging folder into a sealed bundle: written, fsynced, renamed, read back, verified."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import msgspec
import zstandard

from autopsy.bundle import layout
from autopsy.bundle.manifest import FileRecord, Manifest, encode_manifest
from autopsy.bundle.verify import verify_archive
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle, NotStored
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_beneath, open_plain

LEVEL = 3
PIECE = 1 << 18  # of a file that goes into the archive at once
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
AHEAD = f".ahead{private.HALF}"  # in a staging folder: what was packed of it already
MOST_OF_A_NAME = 10
# The core comes last, so that whoever wants only the small evidence can stop reading before it.
ORDER = (layout.README, layout.DIAGNOSIS, layout.REPORT)


class NameTaken(NotStored):
    """Something of the bundle's name is there already."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that lies on its disk and was read back from there: the licence to kill.

    Only `seal` makes one.
    """

    path: Path
    sha256: str
    size: int


class PackedFile(msgspec.Struct, frozen=True):
    """A file that was packed, and when it had changed last then, in ns."""

    record: FileRecord
    changed_ns: int


class PackedAhead(msgspec.Struct, frozen=True):
    """The files that AHEAD holds: the last of an archive, in order, and its end, as a frame of its own."""

    files: tuple[PackedFile, ...]


def pack_ahead(staging: Path, manifest: Manifest, leave_out: frozenset[str]) -> PackedAhead:
    """Pack what is there, but for the manifest and what comes first in a bundle: those are not known yet.

    A seal takes it over where all of it is as it was.

    Raises:
        OSError, ValueError, NotPlain: something could not be read whole.
    """
    with private.held(staging) as folder:
        _unlink(AHEAD, folder)
        with private.new(AHEAD, below=folder) as file, _compressed(file) as packed:
            names = [name for name in _in_order(folder) if name not in ORDER and name not in leave_out]
            files = tuple(_pack_file(packed, folder, name, manifest) for name in names)
            packed.write(END_OF_TAR)
        return PackedAhead(files)


def seal(
    staging: Path,
    destination: Path,
    manifest: Manifest,
    *,
    leave_out: frozenset[str] = frozenset(),
    ahead: PackedAhead | None = None,
) -> Sealed:
    """Pack `staging` into `destination` and return its seal. The staging folder is left as it is.

    What was packed `ahead` is not packed again, as long as it is what lies there.

    Raises:
        NameTaken: something of that name is there already.
        NotStored: anything at all went wrong; no half-written bundle is left under the final name.
    """
    work = _Work(staging, destination, manifest, leave_out, ahead)
    try:
        with private.anybodys(destination.parent) as place:
            try:
                return _seal(work, place)
            except (ValueError, DamagedBundle, NotPlain):  # a late child of ours may have written meanwhile
                return _seal(replace(work, ahead=None), place)
    except FileExistsError as error:
        raise NameTaken(str(destination), "is there already", remedy=f"the evidence lies in {staging}") from error
    except Exception as error:
        raise NotStored(
            str(destination),
            f"the bundle could not be stored ({error})",
            remedy=f"nothing was killed; the evidence lies in {staging}",
        ) from error


def seal_in(
    place: Path,
    name: str,
    staging: Path,
    manifest: Manifest,
    leave_out: frozenset[str],
    *,
    ahead: PackedAhead | None = None,
) -> Sealed:
    """Seal into a place under the first name that is free: that of the capture, then with a number.

    Raises:
        NotStored: as `seal` does.
    """
    for end in ("", *(f"-{number}" for number in range(2, MOST_OF_A_NAME))):
        try:
            return seal(staging, place / f"{name}{end}.tar.zst", manifest, leave_out=leave_out, ahead=ahead)
        except NameTaken:
            continue
    return seal(staging, place / f"{name}-{private.token()}.tar.zst", manifest, leave_out=leave_out, ahead=ahead)


def half_written(staging: Path) -> str:
    """Return how the names of bundles begin that were never finished; only a killed capture leaves such a file."""
    return f".{staging.name.removesuffix(layout.WORK).removesuffix(layout.PARTIAL)}."


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be packed, and where to."""

    staging: Path
    destination: Path
    manifest: Manifest
    leave_out: frozenset[str]
    ahead: PackedAhead | None


def _seal(work: _Work, place: int) -> Sealed:
    name = work.destination.name
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=place, follow_symlinks=False)
        raise FileExistsError(name)
    unfinished = work.staging.name.endswith((layout.WORK, layout.PARTIAL))
    half = f"{half_written(work.staging) if unfinished else f'.{name}.'}{private.token()}{layout.PARTIAL}"
    try:
        with private.held(work.staging) as folder:
            names = [name for name in _in_order(folder) if name not in work.leave_out]
            ahead = work.ahead if work.ahead and _is_as_it_was(folder, work.ahead, names) else PackedAhead(())
            last = tuple(file.record for file in ahead.files)
            packed_already = {record.path for record in last}
            first = tuple(_record(folder, name) for name in names if name not in packed_already)
            manifest = msgspec.structs.replace(work.manifest, files=(*first, *last))
            digest, packed = _pack(folder, half, place, manifest, first)
    except BaseException:
        _unlink(half, place)
        raise
    try:
        _name_it(place, half, name)
        try:
            return _read_back(work.destination, place, packed, digest)
        except BaseException:
            _unlink(name, place)
            raise
    finally:
        os.close(packed)


def _name_it(place: int, half: str, name: str) -> None:
    try:
        private.rename_new(place, half, name)
    except BaseException:
        _unlink(half, place)
        raise
    os.fsync(place)


def _unlink(name: str, place: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=place)


def _read_back(destination: Path, place: int, packed: int, digest: str) -> Sealed:
    """Read what was packed from its disk, as far as the page cache lets us, and make sure that the name leads to it."""
    os.posix_fadvise(packed, 0, 0, os.POSIX_FADV_DONTNEED)
    if verify_archive(destination, packed).sha256 != digest:
        raise ValueError("what was read back is not what was written")
    written = os.fstat(packed)
    named = os.stat(destination.name, dir_fd=place, follow_symlinks=False)
    # Some file systems tell another number of one file each time.
    if not os.path.samestat(written, named) and _digest(place, destination.name) != digest:
        raise ValueError("whoever owns the folder has laid something else there")
    return Sealed(destination, digest, written.st_size)


def _digest(place: int, name: str) -> str:
    with open(open_plain(name, below=place), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _in_order(folder: int) -> list[str]:
    """Return the plain files that belong into the bundle: no link that leads elsewhere, nothing half done."""
    names = []
    for parent, folders, files, _ in os.fwalk(".", dir_fd=folder):
        folders[:] = [name for name in folders if not name.startswith(layout.SCRATCH)]
        names += [f"{parent}/{file}".removeprefix("./") for file in files if not file.endswith(private.HALF)]
    plain = [name for name in names if name != layout.MANIFEST and _is_plain(folder, name)]
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(plain, key=lambda name: (name in (layout.CORE, layout.BINARY), rank.get(name, len(ORDER)), name))


def _is_plain(folder: int, name: str) -> bool:
    try:
        with _reading(folder, name):
            return True
    except NotPlain:
        return False


@contextmanager
def _reading(folder: int, name: str) -> Iterator[io.BufferedReader]:
    """Open a file of the staging folder to read; no link is followed, whenever it was laid."""
    with open(open_beneath(folder, name), "rb") as stream:
        yield stream


def _record(folder: int, name: str) -> FileRecord:
    with _reading(folder, name) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(path=name, size=os.fstat(stream.fileno()).st_size, sha256=digest)


class _Hashing:
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.stream.write(data)


def _is_as_it_was(folder: int, ahead: PackedAhead, names: Collection[str]) -> bool:
    """Return whether each file is there as it was packed, and what became of them, too."""
    there = set(names)
    with suppress(OSError, NotPlain):
        for file in ahead.files:
            with _reading(folder, file.record.path) as stream:
                status = os.fstat(stream.fileno())
            if file.record.path not in there or (status.st_size, status.st_mtime_ns) != (
                file.record.size,
                file.changed_ns,
            ):
                return False
        return _is_plain(folder, AHEAD)
    return False


@contextmanager
def _compressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield what compresses into one frame of a file that stays open."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    with compressor.stream_writer(file, closefd=False) as packed:
        yield cast("IO[bytes]", packed)


def _pack(folder: int, half: str, place: int, manifest: Manifest, first: tuple[FileRecord, ...]) -> tuple[str, int]:
    """Write the archive and return its digest, and a descriptor that reads the very file.

    What the manifest names beyond the `first` is packed already.
    """
    with private.new(half, below=place) as file:
        hashing = cast("IO[bytes]", _Hashing(file))
        with _compressed(hashing) as packed:
            data = encode_manifest(manifest)
            _put(packed, _entry(layout.MANIFEST, len(data), manifest), (data,))
            for record in first:
                with _reading(folder, record.path) as stream:
                    _put(packed, _entry(record.path, record.size, manifest), _pieces(stream, record.size))
            if first == manifest.files:
                packed.write(END_OF_TAR)
        if first != manifest.files:
            with _reading(folder, AHEAD) as stream:
                for piece in iter(lambda: stream.read(PIECE), b""):
                    hashing.write(piece)
        file.flush()
        os.fsync(file.fileno())
        readable, digest = open_plain(half, below=place), cast("_Hashing", hashing).digest.hexdigest()
        if not os.path.samestat(os.fstat(readable), os.fstat(file.fileno())) and _digest(place, half) != digest:
            os.close(readable)
            raise NotPlain(f"{half} is not the file that was written")
        return digest, readable


def _pack_file(packed: IO[bytes], folder: int, name: str, manifest: Manifest) -> PackedFile:
    """Put a file into an archive, and return what was put there."""
    with _reading(folder, name) as stream:
        status = os.fstat(stream.fileno())
        digest = hashlib.sha256()
        _put(packed, _entry(name, status.st_size, manifest), _pieces(stream, status.st_size, digest.update))
        return PackedFile(FileRecord(path=name, size=status.st_size, sha256=digest.hexdigest()), status.st_mtime_ns)


def _put(packed: IO[bytes], entry: tarfile.TarInfo, pieces: Iterable[bytes]) -> None:
    packed.write(entry.tobuf(tarfile.USTAR_FORMAT))
    for piece in pieces:
        packed.write(piece)
    packed.write(bytes(-entry.size % tarfile.BLOCKSIZE))


def _pieces(stream: IO[bytes], size: int, watch: Callable[[bytes], object] = lambda _piece: None) -> Iterator[bytes]:
    """Yield so many bytes of a file.

    Raises:
        ValueError: it has become shorter.
    """
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise ValueError("a file became shorter while it was packed")
        watch(piece)
        yield piece
        size -= len(piece)


def _entry(name: str, size: int, manifest: Manifest) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o600
    entry.mtime = int(_seconds(manifest.began.utc))
    return entry


def _seconds(utc: str) -> float:
    from datetime import datetime  # noqa: PLC0415 - only a seal needs it; `autopsy --help` does not

    try:
        return datetime.fromisoformat(utc).timestamp()
    except ValueError:
        return 0.0
