"""Reads bytes that somebody gave, compressed or not, in pieces and within bounds, as a stream and as lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, cast

import zstandard

from autopsy.incoming.lz4_frames import Lz4Frames

PIECE = 1 << 20
MOST_TEXT = 64 << 20  # bytes of all texts together
MOST_LONG = 512 << 10  # characters of one line that are kept: an answer of QMP may be one
MOST_WINDOW = 128 << 20
HEAD = 64 << 10
MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x7fELF", "elf"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"KDUMP   ", "kdump"),
    (b"QFI\xfb", "qcow2"),
)
Readable = Callable[[int], bytes]
COMPRESSED = frozenset({"zstd", "gzip", "bzip2", "xz", "lz4"})


class Stream(io.RawIOBase):
    """A descriptor from its start, which nobody else's position moves."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True: an archive's directory stands at its end."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, which may lie beyond the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: os.fstat(self.descriptor).st_size}[whence]
        self.at = max(0, start + offset)
        return self.at

    def readinto(self, buffer: object) -> int:
        """Fill the buffer."""
        view = memoryview(cast("bytearray", buffer))
        data = os.pread(self.descriptor, len(view), self.at)
        view[: len(data)] = data
        self.at += len(data)
        return len(data)


def kind_of(head: bytes) -> str:
    """Return what the first bytes say: a compression, `elf`, `tar`, an image, `text`, or `binary`."""
    for magic, kind in MAGICS:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"
    strange = sum(byte < 9 or 13 < byte < 27 for byte in head[:4096])
    return "binary" if strange * 50 > len(head[:4096]) else "text"


class Unpacked(io.RawIOBase):
    """What a compressed stream holds, up to where it is damaged or cut short; `broken` says how, in words."""

    def __init__(self, whole: Readable) -> None:
        self.whole = whole
        self.broken = ""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill the buffer."""
        view = memoryview(cast("bytearray", buffer))
        try:
            data = b"" if self.broken else self.whole(len(view))
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            self.broken, data = f"{type(error).__name__}: {error}", b""
        view[: len(data)] = data
        return len(data)


def unpacked(stream: IO[bytes], kind: str) -> Unpacked | None:
    """Return what a compressed stream holds, None where it is not compressed in a way that is known."""
    match kind:
        case "zstd":
            whole = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW)
            return Unpacked(whole.stream_reader(stream, read_across_frames=True).read)
        case "gzip":
            return Unpacked(gzip.GzipFile(fileobj=stream).read1)
        case "bzip2":
            return Unpacked(bz2.BZ2File(stream).read1)
        case "xz":
            return Unpacked(lzma.LZMAFile(stream).read1)
        case "lz4":
            return Unpacked(Lz4Frames(stream).take)
        case _:
            return None


def lines(head: bytes, stream: IO[bytes], most: int, notes: list[str]) -> Iterator[str]:
    """Yield the lines of a text; what is longer or more than anybody reads is left out, and said in `told`."""
    decode = _decoder(head)
    end = "\r" if b"\r" in head and b"\n" not in head else "\n"  # as editors of old Macs end them
    pending, skipping, left, cut = "", False, most, 0
    data = head
    while data:
        left -= len(data)
        *whole, rest = (pending + decode.decode(data)).split(end)
        for line in whole:
            if not skipping:
                yield line[:MOST_LONG]
            skipping = False
        pending = rest if not skipping else ""
        if len(pending) > MOST_LONG:
            yield pending[:MOST_LONG]
            pending, skipping, cut = "", True, cut + 1
        if left <= 0:
            notes.append(f"the text was read for its first {most >> 20} MiB, and no further")
            return
        data = stream.read(min(PIECE, left))
    if pending:
        yield pending
    if cut:
        notes.append(f"{cut} lines were cut: no line of a backtrace is longer than {MOST_LONG >> 10} KiB")


def _decoder(head: bytes) -> codecs.IncrementalDecoder:
    name = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return codecs.getincrementaldecoder(name)("replace")
