"""Reads a process's memory map."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autopsy.bundle.records import Region
from autopsy.dataclass import dataclass

PAGE = 4096

_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20})"
    rb" *([^\n]*)$",
    re.MULTILINE,
)
_OCTAL = re.compile(r"\\([0-7]{3})")
DELETED = " (deleted)"


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


def _region(mapping: Mapping, why: str) -> Region:
    return Region(start=mapping.start, size=mapping.size, path=printable(mapping.path), why=why)


def printable(path: str) -> str:
    """Return a path that can be written as UTF-8."""
    return path.encode("utf-8", "replace").decode()
