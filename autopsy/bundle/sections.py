"""One text file made of many small ones, each under a header with its name and exact length.

A thousand /proc files would be a thousand tar members. Here they are one file that `less` shows as `head` would:

    ==> task/4242/wchan (9 bytes) <==
    do_sys_po
    ==> task/4243/stack (unreadable: EACCES) <==

The length, not the header's look, says where a section ends: a thread may be named "==> x <==".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

REST = " (rest)"  # how the section is named that says, as its error, what a limit of ours kept out
MOST_NAME = 512  # a mount point or a cgroup may have a longer path: its start is enough to cite it
HEADER = re.compile(rb"==> ([^\n]{1,512}?) \((?:(\d{1,12}) bytes|unreadable: ([^\n)]{0,200}))\) <==\n")


class Section(msgspec.Struct, frozen=True, gc=False):
    """One small file: `data` as it was read, or `error` (an errno name or a short reason) where it was not.

    `line` is the 1-based line of the first byte of data in the whole file, for cites.
    """

    name: str
    data: bytes
    error: str = ""
    line: int = 0


def render(sections: Iterable[Section]) -> bytes:
    """Return the sections as one file. Names must hold no newline."""
    parts: list[bytes] = []
    for section in sections:
        name = section.name.replace("\n", "\\n").encode("utf-8", "surrogateescape")[:MOST_NAME]
        if section.error:
            parts.append(b"==> %b (unreadable: %b) <==\n" % (name, section.error.replace("\n", " ").encode()))
            continue
        newline = b"" if section.data.endswith(b"\n") else b"\n"
        parts.append(b"==> %b (%d bytes) <==\n%b%b" % (name, len(section.data), section.data, newline))
    return b"".join(parts)


def parse(data: bytes) -> Iterator[Section]:
    """Yield the sections of a file; one that is cut short ends with what is left of it."""
    position = 0
    line = 1
    while header := HEADER.match(data, position):
        name = header[1].decode("utf-8", "surrogateescape")
        position = header.end()
        line += 1
        if header[2] is None:
            yield Section(name, b"", error=header[3].decode("utf-8", "replace") or "unknown", line=line - 1)
            continue
        body = data[position : position + int(header[2])]
        yield Section(name, body, line=line)
        position += len(body)
        line += body.count(b"\n")
        if not body.endswith(b"\n") and data[position : position + 1] == b"\n":
            position += 1
            line += 1
