"""Reads the files of a zip archive within bounds, whatever its directory claims of them."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, cast

MOST_DIRECTORY = 32 << 20  # bytes: a hundred thousand files with long names
END = b"PK\x05\x06"
END_64 = b"PK\x06\x06"  # of a large archive; it stands before the other one
DIRECTORY_SIZE = {END: ("<I", 12), END_64: ("<Q", 40)}  # where each tells the directory's
TAIL = (64 << 10) + 22 + 20 + 56
ENCRYPTED = 1  # of the flags that each file has
UNREADABLE = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, OSError)


class NotRead(ValueError):
    """The archive is damaged, or larger than anybody's."""


class _Counted(io.RawIOBase):
    """A file of an archive, which ends where the archive's whole share of bytes does."""

    def __init__(self, stream: IO[bytes], left: list[int]) -> None:
        self.stream, self.left = stream, left

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill the buffer."""
        view = memoryview(cast("bytearray", buffer))
        data = self.stream.read(min(len(view), self.left[0]))
        self.left[0] -= len(data)
        view[: len(data)] = data
        return len(data)


def members(stream: IO[bytes], most: int, most_bytes: int, notes: list[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the regular files of an archive that can be sought in, no more than `most`, and `most_bytes` together.

    What is left out is said in `told`.

    Raises:
        NotRead: it is no archive, or one with an absurd directory.
    """
    _check_directory(stream)
    left = [most_bytes]
    unreadable: dict[str, None] = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if len(entries) > most:
                notes.append(f"{len(entries) - most} files of the archive were left out: more than {most}")
            for entry in (entry for entry in entries[:most] if not entry.is_dir()):
                if entry.flag_bits & ENCRYPTED:
                    unreadable["encrypted"] = None
                    continue
                try:
                    member = archive.open(entry)
                except UNREADABLE as error:  # damaged, or packed in a way that is not known
                    unreadable[f"{error}"[:100]] = None
                    continue
                with member:
                    yield entry.filename, cast("IO[bytes]", _Counted(member, left))
                if left[0] <= 0:
                    notes.append(f"the archive was read for {most_bytes >> 30} GiB, and no further")
                    return
    except zipfile.BadZipFile as error:
        raise NotRead(f"it is no whole zip archive: {error}") from error
    finally:
        if unreadable:
            notes.append(f"files of the zip archive could not be read: {'; '.join(tuple(unreadable)[:3])}")


def _check_directory(stream: IO[bytes]) -> None:
    """Refuse a directory that nobody has the memory for, before it is read."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - TAIL))
    tail = stream.read(TAIL)
    for magic, (form, offset) in DIRECTORY_SIZE.items():
        place = tail.rfind(magic)
        if place >= 0 and len(tail) >= place + offset + struct.calcsize(form):
            (claimed,) = struct.unpack_from(form, tail, place + offset)
            if claimed > MOST_DIRECTORY:
                raise NotRead(f"its directory of {claimed} bytes is larger than any archive's of a host's files")
