"""Reads the core inside of Ubuntu's crash files: base64 of gzip, in lines that begin with a blank."""

from __future__ import annotations

import base64
import binascii
import io
from typing import IO, cast

APPORT = b"ProblemType:"
COREDUMP = b"CoreDump: base64\n"
PIECE = 1 << 20


class Base64Lines(io.RawIOBase):
    """The bytes of the indented lines that come next; the first other line ends them. Each is base64 of its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.ready = b""
        self.line = b""  # what is left of the line at hand: less than four letters
        self.at_start = True
        self.ended = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill the buffer."""
        view = memoryview(cast("bytearray", buffer))
        while not self.ready and not self.ended:
            piece = self.stream.read(PIECE)
            self.ended = not piece
            for number, part in enumerate(piece.split(b"\n")):
                self._take(part, new=number > 0)
        data = self.ready[: len(view)]
        self.ready = self.ready[len(data) :]
        view[: len(data)] = data
        return len(data)

    def _take(self, part: bytes, *, new: bool) -> None:
        if new:
            self.at_start, self.line = True, b""
        if self.ended or not part:
            return
        if self.at_start and not part.startswith(b" "):
            self.ended = True
            return
        self.at_start = False
        letters = self.line + part.strip(b" ")
        whole = len(letters) & ~3
        self.line = letters[whole:]
        try:
            self.ready += base64.b64decode(letters[:whole], validate=True)
        except binascii.Error:
            self.ended = True
