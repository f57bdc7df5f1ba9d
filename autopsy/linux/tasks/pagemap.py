"""Tells which pages of another process's memory there are, without a fault on any of them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Iterator

from autopsy.dataclass import dataclass
from autopsy.linux.mappings import PAGE

Run = tuple[int, int]  # address, bytes

# An entry's top byte (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _SWAPPED, _FILE, _GUARD = 0x80, 0x40, 0x20, 0x04  # the last since Linux 6.15: MADV_GUARD_INSTALL
SLICE_PAGES = 8192  # 64 KB of pagemap for 32 MB of memory: the kernel holds the lock of the map for a sixteenth of it
_RUNS = re.compile(rb"\x01+")

# Since Linux commit 52526ca7fdb9 ("fs/proc/task_mmu: implement IOCTL to get and optionally clear info about PTEs", in
# 6.7) the kernel tells runs instead of pages: no copy of an entry for each, and a fifth of the time for thread stacks.
SCAN = 0xC0606610  # PAGEMAP_SCAN
ARGUMENT = struct.Struct("<12Q")  # struct pm_scan_arg
REGION = struct.Struct("<3Q")  # struct page_region
REGIONS_A_CALL = 512
_CATEGORIES = {_PRESENT: 1 << 3, _SWAPPED: 1 << 4, _FILE: 1 << 2, _GUARD: 1 << 8}
_TELL = sum(_CATEGORIES.values())
_THERE = _CATEGORIES[_PRESENT] | _CATEGORIES[_SWAPPED]


@dataclass(frozen=True, slots=True)
class PageKind:
    """Which pages are meant: `table` maps an entry's top byte to 1 or 0, a scan's categories are wanted or refused."""

    table: bytes
    wanted: int
    refused: int


def _kind(wanted: int, refused: int) -> PageKind:
    """Return the pages that have one of the wanted bits of an entry's top byte, and none of those refused."""
    return PageKind(
        bytes(1 if byte & wanted and not byte & refused else 0 for byte in range(256)),
        sum(category for bit, category in _CATEGORIES.items() if bit & wanted),
        sum(category for bit, category in _CATEGORIES.items() if bit & refused),
    )


IN_MEMORY = _kind(_PRESENT, _GUARD)
SWAPPED_OUT = _kind(_SWAPPED, _GUARD | _PRESENT)
OWN = _kind(_PRESENT, _GUARD | _FILE)  # no longer the file's page: written to, as relro is by ld.so


def runs(pagemap: int, start: int, end: int, kind: PageKind) -> Iterator[Run]:
    """Yield the runs of pages of a kind, in order; `pagemap` is a descriptor of the process's /proc/PID/pagemap."""
    for (found,) in slices(pagemap, start, end, kind):
        yield from found


def slices(pagemap: int, start: int, end: int, *kinds: PageKind) -> Iterator[tuple[list[Run], ...]]:
    """Yield the runs of each kind, one slice of the range after another: between two of them no lock is held.

    What is in memory and what is swapped out is told of one moment: no page is missed that goes from one to the other.
    """
    while start < end:
        until = min(end, start + SLICE_PAGES * PAGE)
        try:
            start, found = _scanned(pagemap, start, until, kinds)
        except (OSError, struct.error):  # an older kernel, a sandbox that knows no such call, an address of no process
            start, found = _read(pagemap, start, until, kinds)
        yield found


def _scanned(pagemap: int, start: int, end: int, kinds: tuple[PageKind, ...]) -> tuple[int, tuple[list[Run], ...]]:
    """Return how far the kernel has told the runs of a slice, and those."""
    regions = ctypes.create_string_buffer(REGION.size * REGIONS_A_CALL)

    def scan(tell: int) -> tuple[int, int]:
        argument = bytearray(
            ARGUMENT.pack(
                *(ARGUMENT.size, 0, start, end, 0, ctypes.addressof(regions), REGIONS_A_CALL),
                *(0, 0, 0, _THERE, tell),
            )
        )
        count: int = fcntl.ioctl(pagemap, SCAN, argument)  # which also writes to what it is given
        return count, int(ARGUMENT.unpack(argument)[4])

    try:
        count, reached = scan(_TELL)
    except OSError:  # before 6.15 it knows of no guard pages
        count, reached = scan(_TELL & ~_CATEGORIES[_GUARD])
    found: tuple[list[Run], ...] = tuple([] for _ in kinds)
    for first, last, categories in REGION.iter_unpack(regions.raw[: count * REGION.size]):
        for kind, of_kind in zip(kinds, found, strict=True):
            if not categories & kind.wanted or categories & kind.refused:
                continue
            if of_kind and sum(of_kind[-1]) == first:  # they differ in what is not asked for
                of_kind[-1] = of_kind[-1][0], last - of_kind[-1][0]
            else:
                of_kind.append((first, last - first))
    return max(reached, start + PAGE), found


def _read(pagemap: int, start: int, end: int, kinds: tuple[PageKind, ...]) -> tuple[int, tuple[list[Run], ...]]:
    """Return the end of a slice, and the runs of each kind in it: from one entry a page."""
    pages = (end - start) // PAGE
    # Every eighth byte is the top one of a little-endian entry: one slice instead of a loop over the pages.
    tops = os.pread(pagemap, pages * 8, start // PAGE * 8)[7::8]
    return start + pages * PAGE, tuple(
        [
            (start + match.start() * PAGE, (match.end() - match.start()) * PAGE)
            for match in _RUNS.finditer(tops.translate(kind.table))
        ]
        for kind in kinds
    )
