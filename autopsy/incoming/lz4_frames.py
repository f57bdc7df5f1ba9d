"""Unpacks LZ4 frames, as systemd-coredump and `lz4` write them: within bounds, and without a library to depend on.

The format is that of LZ4's own two specifications (frame format 1.6.4, block format). Its checksums are not compared:
what is read here is judged by what it says.
"""

from __future__ import annotations

from typing import IO

MAGIC = b"\x04\x22\x4d\x18"
SKIPPED = (0x184D2A50, 0x184D2A5F)  # frames of other programs' own, which are passed over
VERSION = 0b01
LARGEST = {4: 64 << 10, 5: 256 << 10, 6: 1 << 20, 7: 4 << 20}  # bytes of one block, by its number in the header
STORED = 1 << 31  # a block that was not worth compressing
WINDOW = 64 << 10  # how far back a match may reach
SHORTEST_MATCH = 4
LONGER = 15  # a length that goes on in the bytes that follow


class Damaged(ValueError):
    """What follows is no LZ4 frame, or not a whole one."""


class Lz4Frames:
    """The bytes that one LZ4 frame after the other holds."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.ready = b""
        self.at = 0  # of what is ready
        self.before = b""  # the window that the next block's matches may reach into
        self.largest = 0  # of a block of this frame, 0 between two frames
        self.linked = self.block_sum = self.content_sum = False

    def take(self, size: int) -> bytes:
        """Return the next bytes, no more than `size`; none at the end.

        Raises:
            Damaged: what follows is no frame, or not a whole one.
        """
        while self.at == len(self.ready):
            if not self.largest and not self._begin():
                return b""
            self.ready, self.at = self._block(), 0
        data = self.ready[self.at : self.at + size]
        self.at += len(data)
        return data

    def _begin(self) -> bool:
        """Read a frame's header; return whether there is another frame."""
        while magic := self._exactly(4, at_end=True):
            number = int.from_bytes(magic, "little")
            if SKIPPED[0] <= number <= SKIPPED[1]:
                self._pass_over(int.from_bytes(self._exactly(4), "little"))
                continue
            if magic != MAGIC:
                raise Damaged("what follows a frame of LZ4 is none")
            flags, block = self._exactly(2)
            if flags >> 6 != VERSION or flags & 1:
                raise Damaged("an LZ4 frame of another version, or with a dictionary of its own")
            self.linked, self.block_sum, self.content_sum = not flags & 32, bool(flags & 16), bool(flags & 4)
            self.largest = LARGEST.get(block >> 4 & 7, 0)
            if not self.largest:
                raise Damaged("an LZ4 frame with blocks of a size that is not known")
            self._exactly((8 if flags & 8 else 0) + 1)  # the content's size, and the header's checksum
            self.before = b""
            return True
        return False

    def _block(self) -> bytes:
        """Return the next block, empty at the frame's end."""
        size = int.from_bytes(self._exactly(4), "little")
        if not size:
            self.largest = 0
            self._exactly(4 if self.content_sum else 0)
            return b""
        stored, size = bool(size & STORED), size & ~STORED
        if size > self.largest:
            raise Damaged("a block of LZ4 that is larger than its frame allows")
        data = self._exactly(size)
        self._exactly(4 if self.block_sum else 0)
        whole = data if stored else decompress(data, self.before if self.linked else b"", self.largest)
        if self.linked:
            self.before = (self.before + whole)[-WINDOW:] if len(whole) < WINDOW else whole[-WINDOW:]
        return whole

    def _exactly(self, size: int, *, at_end: bool = False) -> bytes:
        read = bytearray()
        while len(read) < size and (data := self.stream.read(size - len(read))):
            read += data
        if len(read) < size and not (at_end and not read):
            raise Damaged("LZ4 data that was cut short")
        return bytes(read)

    def _pass_over(self, size: int) -> None:
        while size:
            data = self.stream.read(min(size, 1 << 20))
            if not data:
                raise Damaged("LZ4 data that was cut short")
            size -= len(data)


def decompress(data: bytes, before: bytes, most: int) -> bytes:
    """Return what a block holds, whose matches may reach back into what came `before`.

    Raises:
        Damaged: it is no block, or holds more than `most` bytes.
    """
    out = bytearray(before)
    end = len(before) + most
    at, size = 0, len(data)
    while at < size:
        token = data[at]
        at += 1
        length = token >> 4
        if length == LONGER:
            length, at = _longer(data, at)
        if at + length > size or len(out) + length > end:
            raise Damaged("a block of LZ4 with more in it than it may hold")
        out += data[at : at + length]
        at += length
        if at == size:
            break  # the last sequence has no match
        back = int.from_bytes(data[at : at + 2], "little")
        at += 2
        length = token & 15
        if length == LONGER:
            length, at = _longer(data, at)
        length += SHORTEST_MATCH
        if at > size or not 0 < back <= len(out) or len(out) + length > end:
            raise Damaged("a block of LZ4 that repeats what is not there")
        start = len(out) - back
        if back >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // back + 1))[:length]
    return bytes(out[len(before) :])


def _longer(data: bytes, at: int) -> tuple[int, int]:
    """Return a length that goes on in bytes of 255 and one that is less, and where it ended."""
    length = LONGER
    while at < len(data):
        more = data[at]
        at += 1
        length += more
        if more < 255:
            return length, at
    raise Damaged("a length in LZ4 data that never ends")
