"""Packs a staging folder into a sealed bundle: written, fsynced, renamed, read back, verified."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import msgspec
import zstandard

from autopsy.bundle import layout
from autopsy.bundle.manifest import FileRecord, Manifest
from autopsy.bundle.verify import verify
from autopsy.errors import DamagedBundle, NotStored

LEVEL = 3
# The core comes last, so that whoever wants only the small evidence can stop reading before it.
ORDER = (layout.README, layout.DIAGNOSIS, layout.REPORT)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that lies on its disk and was read back from there: the licence to kill.

    Only `seal` makes one.
    """

    path: Path
    sha256: str
    size: int


def seal(staging: Path, destination: Path, manifest: Manifest, *, leave_out: frozenset[str] = frozenset()) -> Sealed:
    """Pack `staging` into `destination` and return its seal. The staging folder is left as it is.

    Raises:
        NotStored: anything at all went wrong; no half-written bundle is left under the final name.
    """
    temporary = unfinished(destination)
    if destination.exists():
        raise NotStored(str(destination), "is there already", remedy=f"the evidence lies in {staging}")
    try:
        try:
            digest = _seal(staging, temporary, destination, manifest, leave_out)
        except (ValueError, DamagedBundle):  # a child of ours that woke up late may have written meanwhile
            digest = _seal(staging, temporary, destination, manifest, leave_out)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        destination.unlink(missing_ok=True)
        raise NotStored(
            str(destination),
            f"the bundle could not be stored ({error})",
            remedy=f"nothing was killed; the evidence lies in {staging}",
        ) from error
    return Sealed(destination, digest, destination.stat().st_size)


def unfinished(destination: Path) -> Path:
    """Return where a bundle is written before it has its name; only a killed capture leaves that behind."""
    return destination.with_name(f".{destination.name}.partial")


def _seal(staging: Path, temporary: Path, destination: Path, manifest: Manifest, leave_out: frozenset[str]) -> str:
    destination.unlink(missing_ok=True)
    files = tuple(_record(staging, name) for name in _in_order(staging) if name not in leave_out)
    digest = _pack(staging, temporary, msgspec.structs.replace(manifest, files=files))
    temporary.rename(destination)
    _sync_folder(destination.parent)
    _read_back(destination, digest)
    return digest


def _read_back(destination: Path, digest: str) -> None:
    if verify(destination, from_disk=True).sha256 != digest:
        raise ValueError("what was read back is not what was written")


def _in_order(staging: Path) -> list[str]:
    """Return the plain files that belong into the bundle: no link that leads elsewhere, nothing half done."""
    found = []
    for parent, folders, files in os.walk(staging):
        folders[:] = [folder for folder in folders if not folder.startswith(layout.SCRATCH)]
        found += [Path(parent, file) for file in files if not file.endswith(layout.HALF)]
    plain = [str(path.relative_to(staging)) for path in found if stat.S_ISREG(os.lstat(path).st_mode)]
    plain = [name for name in plain if name != layout.MANIFEST]
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(plain, key=lambda name: (name in (layout.CORE, layout.BINARY), rank.get(name, len(ORDER)), name))


def _record(staging: Path, name: str) -> FileRecord:
    with open(staging / name, "rb") as stream:
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


def _pack(staging: Path, temporary: Path, manifest: Manifest) -> str:
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        hashing = _Hashing(file)
        with (
            zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).stream_writer(
                cast("IO[bytes]", hashing), closefd=False
            ) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=1 << 20) as tar,
        ):
            _put_manifest(tar, manifest)
            for record in manifest.files:
                with open(staging / record.path, "rb") as stream:
                    entry = _entry(record.path, record.size, manifest)
                    tar.addfile(entry, stream)
        file.flush()
        os.fsync(file.fileno())
        return hashing.digest.hexdigest()


def _put_manifest(tar: tarfile.TarFile, manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    tar.addfile(_entry(layout.MANIFEST, len(data), manifest), io.BytesIO(data))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return manifest.json's bytes, indented for eyes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
