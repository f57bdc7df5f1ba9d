"""Join what threads sleep on, so that a handler whose fd nobody polls can be seen."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from autopsy.bundle import names, sections
from autopsy.bundle.records import PollSet


def sleeps(read: Callable[[str], bytes]) -> tuple[PollSet, ...]:
    """Return the poll sets that the witness saw, empty when it saw none or they cannot be read."""
    data = read(names.evidence(names.WITNESS, names.POLLS))
    try:
        return msgspec.json.decode(data, type=tuple[PollSet, ...]) if data else ()
    except msgspec.DecodeError:
        return ()


def polled(read: Callable[[str], bytes]) -> frozenset[int] | None:
    """Return every fd that some thread polls, by itself or through an epoll set; None when that is not known."""
    sets = sleeps(read)
    if not sets or any(each.truncated for each in sets):
        return None
    fds = {fd.fd for each in sets for fd in each.fds}
    waited = {each.epoll_fd for each in sets if each.epoll_fd is not None}
    inside = epoll_sets(read)
    if not waited <= inside.keys():
        return None
    for epoll in waited | (fds & inside.keys()):
        fds |= inside[epoll]
    return frozenset(fds)


def epoll_sets(read: Callable[[str], bytes]) -> dict[int, frozenset[int]]:
    """Return the fds inside each epoll fd, as /proc/PID/fdinfo printed them."""
    found: dict[int, frozenset[int]] = {}
    for step in (names.WITNESS, names.PROC_FDS):
        for section in sections.parse(read(names.evidence(step, names.FDS))):
            kind, _, fd = section.name.partition("/")
            if kind == "fdinfo" and fd.isdecimal() and b"\ntfd:" in b"\n" + section.data:
                found.setdefault(int(fd), _targets(section.data))
    return found


def _targets(fdinfo: bytes) -> frozenset[int]:
    """Return the fds of lines such as `tfd:        5 events:       19 data: …`."""
    rows = (line.split() for line in fdinfo.splitlines() if line.startswith(b"tfd:"))
    return frozenset(int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit())
