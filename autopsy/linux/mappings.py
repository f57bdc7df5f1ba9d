"""Reads a process's memory map, and which pages of a mapping there are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from autopsy.bundle.records import Region
from autopsy.dataclass import dataclass

PAGE = 4096

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20})"
    rb" *([^\n]*)$",
    re.MULTILINE,
)
_RUNS = re.compile(rb"\x01+")
_OCTAL = re.compile(r"\\([0-7]{3})")
DELETED = " (deleted)"

# A pagemap entry's top byte (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _SWAPPED, _FILE, _GUARD = 0x80, 0x40, 0x20, 0x04  # the last since Linux 6.15: MADV_GUARD_INSTALL
_SLICE_PAGES = 8192  # 64 KB of pagemap for 32 MB of memory: the kernel holds the lock of the map for a sixteenth of it


Run = tuple[int, int]


def _table(wanted: int, refused: int) -> bytes:
    return bytes(1 if byte & wanted and not byte & refused else 0 for byte in range(256))


IN_MEMORY = _table(_PRESENT, _GUARD)
SWAPPED_OUT = _table(_SWAPPED, _GUARD | _PRESENT)


@dataclass(frozen=True, slots=True)
class MappedProcess:
    """The process at hand: its id, descriptors of its mem and pagemap, and the path by which its /proc is read.

    That path is best one through a descriptor of /proc/PID, which never comes to mean another process.
    """

    pid: int
    memory: int
    pagemap: int
    path: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps (Documentation/filesystems/proc.rst). `path` as /proc tells it, unescaped."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def size(self) -> int:
        """Return the length in bytes."""
        return self.end - self.start

    @property
    def file(self) -> str:
        """Return the path without the kernel's remark that the file was deleted."""
        return self.path.removesuffix(DELETED)

    @property
    def anonymous(self) -> bool:
        """Return whether an absent page of it reads as zeros."""
        return not self.inode and "p" in self.permissions


def parse_maps(data: bytes) -> tuple[Mapping, ...]:
    """Return the mappings of /proc/PID/maps in order; skip lines of no known form."""
    mappings: list[Mapping] = []
    for match in _LINE.finditer(data):
        start, end, permissions, offset, device, inode, path = match.groups()
        first, last = int(start, 16), int(end, 16)
        if last <= first or first % PAGE or last % PAGE or (mappings and first < mappings[-1].end):
            continue
        mappings.append(
            Mapping(
                start=first,
                end=last,
                permissions=permissions.decode(),
                offset=int(offset, 16),
                device=device.decode(),
                inode=int(inode),
                path=_OCTAL.sub(_unescape, path.decode("utf-8", "surrogateescape")),
            )
        )
    return tuple(mappings)


def _unescape(match: re.Match[str]) -> str:
    # The kernel writes a newline in a path as \012, and nothing else (seq_path with "\n").
    return "\n" if match[1] == "012" else match[0]


def modules(mappings: Iterable[Mapping]) -> tuple[Mapping, ...]:
    """Return every mapping of a file that has an executable mapping too: the binary and its libraries.

    Any other file may be a guest's memory or disk, and opening it later may hang.
    """
    known = tuple(mappings)
    programs = {
        (mapping.device, mapping.inode)
        for mapping in known
        if mapping.inode and "x" in mapping.permissions and "p" in mapping.permissions and _ordinary(mapping.path)
    }
    return tuple(
        mapping for mapping in known if (mapping.device, mapping.inode) in programs and _ordinary(mapping.path)
    )


def _ordinary(path: str) -> bool:
    return path.startswith("/") and not path.startswith(("/dev/", "/memfd:", "/SYSV", "/[aio]"))


def runs(pagemap: int, start: int, end: int, table: bytes) -> Iterator[Run]:
    """Yield the runs (address, bytes) of pages that the table wants, in order."""
    for first, tops in _tops(pagemap, start, end):
        yield from _found(first, tops, table)


def _tops(pagemap: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield pagemap's top bytes, one a page, with the address that each lot begins at."""
    while start < end:
        pages = min(_SLICE_PAGES, (end - start) // PAGE)
        # Every eighth byte is the top one of a little-endian entry: one slice instead of a loop over the pages.
        yield start, os.pread(pagemap, pages * 8, start // PAGE * 8)[7::8]
        start += pages * PAGE


def _found(start: int, tops: bytes, table: bytes) -> Iterator[Run]:
    for match in _RUNS.finditer(tops.translate(table)):
        yield start + match.start() * PAGE, (match.end() - match.start()) * PAGE


def _region(mapping: Mapping, why: str) -> Region:
    return Region(start=mapping.start, size=mapping.size, path=printable(mapping.path), why=why)


def printable(path: str) -> str:
    """Return a path that can be written as UTF-8."""
    return path.encode("utf-8", "replace").decode()
