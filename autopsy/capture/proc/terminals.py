"""The pseudo-terminals that the target has an end of, and who has the other: QEMU's console, or where its words go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from autopsy.bundle.records import SocketEnd
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import read_file
from autopsy.capture.reading.reader import as_far_as_read
from autopsy.dataclass import dataclass

MASTERS = frozenset({b"/dev/ptmx", b"/dev/pts/ptmx"})  # a master's link is one of these, whichever terminal it is of
SLAVE = re.compile(rb"/dev/pts/(\d+)")
INDEX = re.compile(rb"^tty-index:\s*(\d+)$", re.MULTILINE)  # fdinfo of a master: drivers/tty/pty.c


@dataclass(frozen=True, slots=True)
class Terminal:
    """One of them, with the lowest descriptor of this end; `other_ends` are the links of those that have the other."""

    fd: int
    index: int
    other_ends: frozenset[bytes]

    @property
    def name(self) -> str:
        """Return what it is called by."""
        return f"/dev/pts/{self.index}"


def own_terminals(descriptors: Mapping[str, Section]) -> tuple[Terminal, ...]:
    """Return them, given the sections of fds.txt."""
    terminals: dict[tuple[int, bool], Terminal] = {}
    for name, section in descriptors.items():
        if not name.startswith("fd/"):
            continue
        fd = int(name.removeprefix("fd/"))
        if match := SLAVE.fullmatch(section.data):
            terminals.setdefault((int(match[1]), False), Terminal(fd, int(match[1]), MASTERS))
        elif section.data in MASTERS and (info := descriptors.get(f"fdinfo/{fd}")) and (at := INDEX.search(info.data)):
            index = int(at[1])
            terminals.setdefault((index, True), Terminal(fd, index, frozenset({b"/dev/pts/%d" % index})))
    return tuple(terminals.values())


def ends_of_terminals(terminals: tuple[Terminal, ...], held: Mapping[bytes, tuple[int, ...]]) -> Iterator[SocketEnd]:
    """Yield each with the processes that have its other end, of those that `held` one of that name."""
    for terminal in terminals:
        holding = sorted({pid for link in terminal.other_ends for pid in held.get(link, ())})
        if terminal.other_ends is MASTERS:
            holding = [pid for pid in holding if terminal.index in _masters_of(pid)]
        if holding:
            yield SocketEnd(fd=terminal.fd, inode=0, family="pipe", remote=terminal.name, peer_pids=tuple(holding))


def _masters_of(pid: int) -> frozenset[int]:
    """Return the terminals that a process has the master's end of."""
    indexes = set()
    with suppress(OSError):  # it ended, or the kernel does not show it to us
        for number in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{number}".encode()) in MASTERS:
                fdinfo = read_file(f"/proc/{pid}/fdinfo/{number}")
                indexes |= {int(at) for at in INDEX.findall(as_far_as_read(fdinfo))}
    return frozenset(indexes)
