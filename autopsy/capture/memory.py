"""Which of a process's pages are evidence, by its maps: QEMU's own heap, data and stacks, and never guest RAM."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from autopsy.bundle.records import Region

PAGE = 4096
CAP_BYTES = 512 << 20
MOST_RING_BYTES = 1 << 20
HEADER_BYTES = PAGE  # an ELF file's own headers and, in practice, its build-id note

_LINE = re.compile(
    rb"^(?:([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][sp]) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20})"
    rb" *([^\n]*)|VmFlags:([^\n]*))$",
    re.MULTILINE,
)
_RUNS = re.compile(rb"\x01+")
_OCTAL = re.compile(r"\\([0-7]{3})")
DELETED = " (deleted)"

# A pagemap entry's top byte (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT, _SWAPPED, _FILE, _GUARD = 0x80, 0x40, 0x20, 0x04  # the last since Linux 6.15: MADV_GUARD_INSTALL
_CHUNK_PAGES = 1 << 16


Run = tuple[int, int]


def _table(wanted: int, refused: int) -> bytes:
    return bytes(1 if byte & wanted and not byte & refused else 0 for byte in range(256))


IN_MEMORY = _table(_PRESENT, _GUARD)
SWAPPED_OUT = _table(_SWAPPED, _GUARD | _PRESENT)
_OWN = _table(_PRESENT, _GUARD | _FILE)  # no longer the file's page: written to, as relro is by ld.so


@dataclass(frozen=True, slots=True)
class Process:
    """The process at hand: its id, descriptors of its mem and pagemap, and the path by which its /proc is read.

    That path is best one through a descriptor of /proc/PID, which never comes to mean another process.
    """

    pid: int
    memory: int
    pagemap: int
    path: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping, with smaps' VmFlags (Documentation/filesystems/proc.rst). `path` as /proc tells it, unescaped."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str
    flags: frozenset[str]

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


class Take(Enum):
    """Which pages of a mapping are evidence."""

    HELD = "whatever is in memory or swapped out"
    OWN = "what of it is no longer the file's"
    HEADER = "the ELF header's page"
    RING = "the whole, which the kernel keeps in memory"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One mapping of which something is evidence, with the runs (address, bytes) of it that are there.

    `runs` are in memory; to read those that are `swapped` is to wait for the swap device.
    """

    mapping: Mapping
    runs: tuple[Run, ...]
    swapped: tuple[Run, ...] = ()

    @property
    def size(self) -> int:
        """Return the bytes to copy."""
        return sum(size for _, size in self.runs + self.swapped)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is copied, in order of address, and the writable mappings that are not, with the reason."""

    wanted: tuple[Wanted, ...]
    left_out: tuple[Region, ...]


def parse_smaps(data: bytes) -> tuple[Mapping, ...]:
    """Return the mappings of /proc/PID/smaps (or maps: then without flags), in order; skip lines of no known form."""
    found: list[Mapping] = []
    for match in _LINE.finditer(data):
        start, end, permissions, offset, device, inode, path, flags = match.groups()
        if flags is None:
            first, last = int(start, 16), int(end, 16)
            if last <= first or first % PAGE or last % PAGE or (found and first < found[-1].end):
                continue
            found.append(
                Mapping(
                    start=first,
                    end=last,
                    permissions=permissions.decode(),
                    offset=int(offset, 16),
                    device=device.decode(),
                    inode=int(inode),
                    path=_OCTAL.sub(_unescape, path.decode("utf-8", "surrogateescape")),
                    flags=frozenset(),
                )
            )
        elif found and not found[-1].flags:
            found[-1] = _with_flags(found[-1], flags)
    return tuple(found)


def _unescape(match: re.Match[str]) -> str:
    # The kernel writes a newline in a path as \012, and nothing else (seq_path with "\n").
    return "\n" if match[1] == "012" else match[0]


def _with_flags(mapping: Mapping, flags: bytes) -> Mapping:
    return Mapping(
        start=mapping.start,
        end=mapping.end,
        permissions=mapping.permissions,
        offset=mapping.offset,
        device=mapping.device,
        inode=mapping.inode,
        path=mapping.path,
        flags=frozenset(flags.decode("ascii", "replace").split()),
    )


def modules(mappings: Iterable[Mapping]) -> tuple[Mapping, ...]:
    """Return every mapping of a file that has an executable mapping too: the binary and its libraries.

    Any other file may be a guest's memory or disk, and opening it later may hang.
    """
    known = tuple(mappings)
    programs = {
        (each.device, each.inode)
        for each in known
        if each.inode and "x" in each.permissions and "p" in each.permissions and _ordinary(each.path)
    }
    return tuple(each for each in known if (each.device, each.inode) in programs and _ordinary(each.path))


def _ordinary(path: str) -> bool:
    return path.startswith("/") and not path.startswith(("/dev/", "/memfd:", "/SYSV", "/[aio]"))


def refused(mapping: Mapping) -> str:  # noqa: PLR0911 - a list of reasons reads best as one
    """Return why nothing of a writable mapping may be copied, empty where it is QEMU's own private memory."""
    flags = mapping.flags
    if not flags:
        return "the kernel tells no VmFlags for it, so it could be guest RAM"
    if "dc" in flags:
        return "guest RAM (MADV_DONTFORK)"
    if "ht" in flags:
        return "huge pages of hugetlbfs"
    if flags & {"um", "uw", "ui"}:
        return "watched by userfaultfd, as guest RAM is in a migration"
    if flags & {"io", "pf"}:
        return "device memory"
    if "x" in mapping.permissions:
        return "generated code"
    if "s" in mapping.permissions:
        return "shared memory"
    if "dd" in flags:
        return "its owner asks that it is never dumped (MADV_DONTDUMP)"
    return ""


def choose(mappings: tuple[Mapping, ...], pagemap: int, cap: int = CAP_BYTES) -> Choice:
    """Decide what is evidence, and look in pagemap (a descriptor) which pages of it there are.

    A page that pagemap says is absent is never in a run. Beyond `cap` bytes the largest mappings are cut short.
    """
    of_modules = {each.start for each in modules(mappings)}
    wanted: list[Wanted] = []
    left_out: list[Region] = []
    for mapping in mappings:
        take = _take(mapping, is_module=mapping.start in of_modules)
        if isinstance(take, str):
            if take:
                left_out.append(_region(mapping, take))
            continue
        found = _look(mapping, take, pagemap)
        if found.size:
            wanted.append(found)
    excess = sum(each.size for each in wanted) - cap
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index].size, reverse=True):
        if excess <= 0:
            break
        whole = wanted[index]
        wanted[index] = _shortened(whole, max(0, whole.size - excess))
        excess -= whole.size - wanted[index].size
        left_out.append(_rest(wanted[index], f"the core would be larger than {cap >> 20} MiB"))
    return Choice(tuple(wanted), tuple(left_out))


def _take(mapping: Mapping, *, is_module: bool) -> Take | str:  # noqa: PLR0911 - one case a line
    """Return what to take of a mapping, or why nothing (empty: it is of no interest)."""
    if mapping.path.startswith("/[aio]"):
        return Take.RING if mapping.size <= MOST_RING_BYTES else "larger than any AIO ring"
    if mapping.path == "[vdso]":
        return Take.HELD
    if "w" in mapping.permissions:
        if why := refused(mapping):
            return why
        if mapping.inode and not is_module:
            return "a file's data, and the file is no program"
        return Take.HELD
    if is_module and "x" not in mapping.permissions and "p" in mapping.permissions:
        return Take.OWN if mapping.offset else Take.HEADER
    if is_module and not mapping.offset:  # a file linked without a separate code segment begins with its code
        return Take.HEADER
    return ""


def _look(mapping: Mapping, take: Take, pagemap: int) -> Wanted:
    """Return what there is of a mapping that is worth taking."""
    match take:
        case Take.RING:
            # The one exception to pagemap's word: the kernel allocated these pages at io_setup and writes them through
            # its own mapping, so they are there though the process may never have touched them.
            return Wanted(mapping, ((mapping.start, mapping.size),))
        case Take.HEADER:
            end = min(mapping.end, mapping.start + HEADER_BYTES)
            return Wanted(mapping, tuple(runs(pagemap, mapping.start, end, IN_MEMORY)))
        case Take.OWN | Take.HELD:
            table = _OWN if take is Take.OWN else IN_MEMORY
            there: list[Run] = []
            swapped: list[Run] = []
            for start, tops in _tops(pagemap, mapping.start, mapping.end):
                there += _found(start, tops, table)
                swapped += _found(start, tops, SWAPPED_OUT)
            return Wanted(mapping, tuple(there), tuple(swapped))


def _shortened(whole: Wanted, room: int) -> Wanted:
    """Return the beginning of a mapping, where the oldest objects of a heap lie, and nothing that is swapped out."""
    kept: list[Run] = []
    for address, size in whole.runs:
        if room < PAGE:
            break
        kept.append((address, min(size, room & -PAGE)))
        room -= size
    return Wanted(whole.mapping, tuple(kept))


def _rest(kept: Wanted, why: str) -> Region:
    start = sum(kept.runs[-1]) if kept.runs else kept.mapping.start
    return Region(start=start, size=kept.mapping.end - start, path=_printable(kept.mapping.path), why=why)


def runs(pagemap: int, start: int, end: int, table: bytes) -> Iterator[Run]:
    """Yield the runs (address, bytes) of pages that the table wants, in order."""
    for first, tops in _tops(pagemap, start, end):
        yield from _found(first, tops, table)


def _tops(pagemap: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield pagemap's top bytes, one a page, with the address that each lot begins at."""
    while start < end:
        pages = min(_CHUNK_PAGES, (end - start) // PAGE)
        # Every eighth byte is the top one of a little-endian entry: one slice instead of a loop over the pages.
        yield start, os.pread(pagemap, pages * 8, start // PAGE * 8)[7::8]
        start += pages * PAGE


def _found(start: int, tops: bytes, table: bytes) -> Iterator[Run]:
    for match in _RUNS.finditer(tops.translate(table)):
        yield start + match.start() * PAGE, (match.end() - match.start()) * PAGE


def _region(mapping: Mapping, why: str) -> Region:
    return Region(start=mapping.start, size=mapping.size, path=_printable(mapping.path), why=why)


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode()
