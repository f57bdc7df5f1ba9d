"""Join what threads sleep on, so that a handler whose fd nobody polls can be seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import msgspec

from autopsy.bundle import layout, sections
from autopsy.bundle.records import EventFd, PollSet
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.view import View

Infos = Callable[[str], tuple[tuple[int, bytes], ...]]

FIRST = (layout.WITNESS, layout.PROC_FDS)
INFO = re.compile(r"fdinfo/(\d{1,9})")
IN_RING = re.compile(rb"^PollList:\n\s+op=", re.MULTILINE)
COUNT = re.compile(rb"^eventfd-count:\s*([0-9a-f]{1,16})\s*$", re.MULTILINE)


def sleeps(read: Callable[[str], bytes], step: str = layout.WITNESS) -> tuple[PollSet, ...]:
    """Return the poll sets that a step saw, empty when it saw none or they cannot be read."""
    data = read(layout.evidence(step, layout.POLLS))
    try:
        return msgspec.json.decode(data, type=tuple[PollSet, ...]) if data else ()
    except msgspec.DecodeError:
        return ()


def polled(read: Callable[[str], bytes], *steps: str) -> frozenset[int] | None:
    """Return every fd that some thread polls, by itself or through an epoll set; None when that is not known.

    The first of `steps` tells what threads sleep on; all of them what is inside the epoll sets.
    """
    return _polled(read, _infos_of(read), steps or FIRST)


def _polled(read: Callable[[str], bytes], infos: Infos, steps: tuple[str, ...]) -> frozenset[int] | None:
    sets = sleeps(read, steps[0])
    if not sets or any(poll_set.truncated for poll_set in sets):
        return None
    fds = {fd.fd for poll_set in sets for fd in poll_set.fds}
    waited = {poll_set.epoll_fd for poll_set in sets if poll_set.epoll_fd is not None}
    inside = _epoll_sets(infos, steps)
    if not waited <= inside.keys():
        return None
    for epoll in waited | (fds & inside.keys()):
        fds |= inside[epoll]
    return frozenset(fds)


def epoll_sets(read: Callable[[str], bytes], *steps: str) -> dict[int, frozenset[int]]:
    """Return the fds inside each epoll fd, as /proc/PID/fdinfo printed them."""
    return _epoll_sets(_infos_of(read), steps or FIRST)


def _epoll_sets(infos: Infos, steps: tuple[str, ...]) -> dict[int, frozenset[int]]:
    targets: dict[int, frozenset[int]] = {}
    for step in steps:
        for fd, data in infos(step):
            if b"\ntfd:" in b"\n" + data:
                targets.setdefault(fd, _targets(data))
    return targets


def rings_poll(read: Callable[[str], bytes], *steps: str) -> bool:
    """Return whether an event loop polls through io_uring, which tells nobody which fds.

    QEMU's iothreads did where it was built so (5.0 to 10.1), and every event loop does since v10.2.
    """
    return _rings_poll(_infos_of(read), steps or FIRST)


def _rings_poll(infos: Infos, steps: tuple[str, ...]) -> bool:
    return any(IN_RING.search(data) for step in steps for _, data in infos(step))


def eventfds(read: Callable[[str], bytes]) -> tuple[EventFd, ...]:
    """Return every eventfd, with what both looks say of it."""
    infos, again = _infos_of(read), (layout.SECOND_EXPOSURE,)
    first, second = _counts(infos, FIRST), _counts(infos, again)
    heard, heard_again = _hearing(read, infos, FIRST), _hearing(read, infos, again)
    return tuple(
        EventFd(
            fd=fd,
            count=first.get(fd),
            polled=heard(fd) if fd in first else None,
            count_again=second.get(fd),
            polled_again=heard_again(fd) if fd in second else None,
        )
        for fd in sorted(first.keys() | second.keys())
    )


def _hearing(read: Callable[[str], bytes], infos: Infos, steps: tuple[str, ...]) -> Callable[[int], bool | None]:
    """Return what tells whether an fd is polled, as far as these steps know."""
    fds, rings = _polled(read, infos, steps), _rings_poll(infos, steps)

    def heard(fd: int) -> bool | None:
        if fds is None:
            return None
        return True if fd in fds else None if rings else False

    return heard


def examine_poll_sets(view: View) -> tuple[EventFd, ...]:
    """Write eventfds.json, and return what it says."""
    return write(view.frozen)


def write(frozen: Frozen) -> tuple[EventFd, ...]:
    """Write eventfds.json for what is at hand, without a core."""
    counters = eventfds(frozen.read)
    frozen.write(layout.EVENTFDS, msgspec.json.format(msgspec.json.encode(counters), indent=1) + b"\n")
    return counters


def _counts(infos: Infos, steps: tuple[str, ...]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for step in steps:
        for fd, data in infos(step):
            if count := COUNT.search(data):
                counts.setdefault(fd, int(count[1], 16))
    return counts


def _infos_of(read: Callable[[str], bytes]) -> Infos:
    """Return what tells each fd whose fdinfo a step read, with it; it is read and taken apart once."""

    @cache
    def infos(step: str) -> tuple[tuple[int, bytes], ...]:
        parts = sections.parse(read(layout.evidence(step, layout.FDS)))
        return tuple((int(fd[1]), section.data) for section in parts if (fd := INFO.fullmatch(section.name)))

    return infos


def _targets(fdinfo: bytes) -> frozenset[int]:
    """Return the fds of lines such as `tfd:        5 events:       19 data: …`."""
    rows = (line.split() for line in fdinfo.splitlines() if line.startswith(b"tfd:"))
    return frozenset(int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit() and len(row[1]) < 10)
