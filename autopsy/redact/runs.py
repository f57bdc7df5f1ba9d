"""Cuts a file of sections into those that are looked at one by one, and those of thousands of threads."""

from __future__ import annotations

import re

import msgspec

from autopsy.bundle.sections import HEADER, Section, render

# What a section is called of which there are thousands, or how the kernel refused to tell, has nothing to be hidden.
_HEADER = rb"==> (?:%b) \((?:(?P<size>0|[1-9]\d{0,11}) bytes|unreadable: E[A-Z]{2,14})\) <==\n"
THREADS = re.compile(_HEADER % rb"task/\d{1,10}/(?:stat|status|syscall|wchan|stack|schedstat|(?P<own>comm))")
DESCRIPTORS = re.compile(_HEADER % rb"fdinfo/\d{1,10}|(?P<own>fd)/\d{1,10}")
# What may stand in a section of its `own` in a run: how QEMU calls a thread, a descriptor that leads to nothing named.
OWN = {
    THREADS: re.compile(rb".*", re.DOTALL),
    DESCRIPTORS: re.compile(rb"(?:anon_inode:\[[a-z]{4,20}\]|(?:socket|pipe):\[\d{1,20}\])\n?"),
}


class ManySections(msgspec.Struct, frozen=True, gc=False):
    """Sections of threads or descriptors as they stand; `contents` are what the kernel says in them of its own."""

    data: bytes
    contents: tuple[bytes, ...]


class OneSection(msgspec.Struct, frozen=True, gc=False):
    """One section, as it stands, and taken apart."""

    data: bytes
    section: Section


def cut(data: bytes, many: re.Pattern[bytes] | None) -> tuple[ManySections | OneSection, ...] | None:
    """Return what a file consists of, None where that is not whole sections; of those that are `many` runs are made."""
    parts: list[ManySections | OneSection] = []
    position = 0
    while position < len(data):
        run = None if many is None else _run(data, position, many)
        part = _single(data, position) if run is None else run
        if part is None:
            return None
        parts.append(part)
        position += len(part.data)
    return tuple(parts)


def _run(data: bytes, start: int, many: re.Pattern[bytes]) -> ManySections | None:
    """Return the longest run that begins there, None where there is none."""
    contents: list[bytes] = []
    position = start
    header_at, is_own = many.match, OWN[many].fullmatch
    while header := header_at(data, position):
        body = header.end()
        size, own = header.group("size", "own")
        end = _end(data, body, size)
        if end is None or (own and not is_own(data, body, end)):
            break
        if not own:
            contents.append(data[body:end])
        position = end
    return None if position == start else ManySections(data[start:position], tuple(contents))


def _single(data: bytes, start: int) -> OneSection | None:
    header = HEADER.match(data, start)
    end = None if header is None else _end(data, header.end(), header[2])
    if header is None or end is None:
        return None
    name = header[1].decode("utf-8", "surrogateescape")
    if header[2] is None:
        section = Section(name, b"", error=header[3].decode("utf-8", "replace") or "unknown")
    else:
        section = Section(name, data[header.end() : header.end() + int(header[2])])
    whole = data[start:end]
    return OneSection(whole, section) if render((section,)) == whole else None


def _end(data: bytes, start: int, size: bytes | None) -> int | None:
    """Return where a section ends whose data begins there, None where it is cut short."""
    if size is None:
        return start
    end = start + int(size)
    if end > len(data):
        return None
    if end > start and data[end - 1] == 0x0A:
        return end
    return end + 1 if data[end : end + 1] == b"\n" else None
