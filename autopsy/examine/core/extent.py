"""A run of frozen bytes: where it lies, and where something lies in it."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from functools import cache

from autopsy.dataclass import dataclass

PAGE = 4096
WINDOW = 16 << 20  # bytes that are searched before they are let go


@dataclass(frozen=True, slots=True)
class CoreExtent:
    """A run of frozen bytes: addresses start to end lie at `offset` of `source`."""

    start: int
    end: int
    offset: int
    source: mmap.mmap | bytes

    def find(self, needle: bytes) -> Iterator[int]:
        """Yield every address at which the bytes lie, in order, overlaps included."""
        search, zeros = _searcher(needle)
        last = self.offset + self.end - self.start
        for window in range(self.offset, last, WINDOW):
            end = min(last, window + WINDOW + len(needle) - 1)
            match = search(self.source, window + len(zeros), end)
            while match:
                position = match.start() - len(zeros)
                if self.source[position : match.start()] == zeros:
                    yield self.start + position - self.offset
                match = search(self.source, match.start() + 1, end)
            if last - self.offset > WINDOW:
                self.let_go(window, end)

    def let_go(self, first: int, last: int) -> None:
        """Take a part of the file out of our memory again, where it is a file's: it is in the page cache still."""
        if isinstance(self.source, mmap.mmap):
            first &= -PAGE
            self.source.madvise(mmap.MADV_DONTNEED, first, min(last, len(self.source)) - first)


@cache
def _searcher(needle: bytes) -> tuple[Callable[..., re.Match[bytes] | None], bytes]:
    """Return what finds the bytes behind the zeros that a needle begins with, and these zeros."""
    rare = needle.lstrip(b"\0") or needle  # what most of a core consists of slows a search down to a third
    return re.compile(re.escape(rare)).search, needle[: len(needle) - len(rare)]
