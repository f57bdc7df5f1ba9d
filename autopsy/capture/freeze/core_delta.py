"""Finds the pages in which a later snapshot differs from an earlier core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.capture.freeze.chunk import Chunk, Present
from autopsy.capture.freeze.core_writer import ZERO
from autopsy.examine.core.reader import Core
from autopsy.linux.mappings import PAGE, Mapping
from autopsy.linux.tasks.pagemap import Run

BLOCK = 64 * PAGE


def changed(chunks: Iterable[Chunk], first: Core) -> Iterator[Chunk]:
    """Yield, in order, the runs of pages that the first core holds otherwise, or not at all."""
    for chunk in chunks:
        position = chunk.address
        for extent in first.extents_within(chunk.address, chunk.end):
            start = max(extent.start, position)
            end = min(extent.end, chunk.end)
            if start > position:
                yield _part(chunk, position, start)
            yield from _differing(chunk, start, end, first)
            position = end
        if position < chunk.end:
            yield _part(chunk, position, chunk.end)


def alike_in(first: Core, address: int, data: memoryview) -> Iterator[Run]:
    """Yield, in order, the runs of whole pages that the first core holds just so."""
    begun = end = address
    for extent in first.extents_within(address, address + len(data)):
        start, last = max(extent.start, address), min(extent.end, address + len(data))
        for block in range(start, last, BLOCK):
            size = min(BLOCK, last - block)
            earlier, later = first.read(block, size), data[block - address : block - address + size].tobytes()
            for page in range(0, size, size) if earlier == later else range(0, size, PAGE):
                length = size if earlier == later else PAGE
                if earlier[page : page + length] != later[page : page + length]:
                    continue
                if block + page != end:
                    if end > begun:
                        yield begun, end - begun
                    begun = block + page
                end = block + page + length
    if end > begun:
        yield begun, end - begun


def vanished(mappings: Iterable[Mapping], chunks: Iterable[Present], first: Core) -> Iterator[Chunk]:
    """Yield pages of zeros for those that the first core holds and that the process has given back since.

    An absent page of anonymous memory reads as zeros; without this it would look as it did before.
    `mappings` are those of which every page that is there is in one of `chunks`; both are in order.
    """
    there = iter(chunks)
    chunk = next(there, None)
    for mapping in mappings:
        if not mapping.anonymous:
            continue
        for extent in first.extents_within(mapping.start, mapping.end):
            address = max(extent.start, mapping.start)
            while address < min(extent.end, mapping.end):
                while chunk is not None and chunk.end <= address:
                    chunk = next(there, None)
                if chunk is not None and chunk.address <= address:
                    address = chunk.end
                    continue
                if first.read(address, PAGE) != ZERO:
                    yield Chunk(address, memoryview(ZERO))
                address += PAGE


def _differing(chunk: Chunk, start: int, end: int, first: Core) -> Iterator[Chunk]:
    """Compare one run that the first core holds whole: by blocks, then by pages."""
    for block in range(start, end, BLOCK):
        size = min(BLOCK, end - block)
        earlier = first.read(block, size)
        later = _part(chunk, block, block + size).data.tobytes()
        if earlier == later:
            continue
        for page in range(0, size, PAGE):
            if earlier[page : page + PAGE] != later[page : page + PAGE]:
                yield _part(chunk, block + page, min(block + page + PAGE, end))


def _part(chunk: Chunk, start: int, end: int) -> Chunk:
    return Chunk(start, chunk.data[start - chunk.address : end - chunk.address])
