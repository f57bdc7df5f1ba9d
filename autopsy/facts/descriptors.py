"""Open descriptors, joined with the poll sets that they are in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from autopsy.bundle import layout, records
from autopsy.bundle.sections import Section
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence, missing, section_map, text
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import Descriptor
from autopsy.facts.threads import fields, int_of

SOCKET = re.compile(r"socket:\[(\d+)\]")
EPOLL_TARGET = re.compile(r"^tfd:\s*(\d+)", re.MULTILINE)
NO_DISKS = frozenset({"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/fuse"})
OPEN_FILES = "Max open files"  # a line of /proc/PID/limits; the soft limit is its first number
KINDS = (
    ("anon_inode:[eventfd]", "eventfd"),
    ("anon_inode:[eventpoll]", "epoll"),
    ("anon_inode:[timerfd]", "timerfd"),
    ("anon_inode:[io_uring]", "io_uring"),
    ("anon_inode:kvm-", "kvm"),
    ("/dev/kvm", "kvm"),
    ("pipe:", "pipe"),
    ("socket:", "socket"),
)


def gather_descriptors(evidence: Evidence) -> Fact[tuple[Descriptor, ...]]:
    """Return every descriptor that the best reading holds."""
    readings = ((step, section_map(evidence, step, layout.FDS)) for step in (layout.PROC_FDS, layout.WITNESS))
    step, files = next(((step, files) for step, files in readings if files), ("", {}))
    if not step:
        return missing(evidence, layout.PROC_FDS, layout.FDS)
    path = layout.evidence(step, layout.FDS)
    polled = _polled(evidence, files)
    devices = _devices(files)
    descriptors = []
    for name, section in files.items():
        fd = int_of(name.removeprefix("fd/")) if name.startswith("fd/") else None
        if fd is None or section.error:
            continue
        descriptors.append(
            _descriptor(
                fd,
                text(section).rstrip("\n"),
                files.get(f"fdinfo/{fd}"),
                polled,
                devices,
                Cite(path, section.line, name),
            )
        )
    return Known(tuple(descriptors), Cite(path))


def _descriptor(  # noqa: PLR0917 - every source of a descriptor's facts, once
    fd: int,
    target: str,
    info: Section | None,
    polled: Mapping[int, tuple[int, ...]],
    devices: Mapping[str, str],
    cite: Cite,
) -> Descriptor:
    entries = fields(text(info)) if info else {}
    counter = int_of(entries.get("eventfd-count", ""), 16)
    socket = SOCKET.fullmatch(target)
    kind = next((kind for prefix, kind in KINDS if target.startswith(prefix)), "")
    if not kind:
        kind = (
            "block device"
            if target.startswith("/dev/") and target not in NO_DISKS
            else "file"
            if target.startswith("/")
            else "other"
        )
    return Descriptor(
        fd=fd,
        kind=kind,  # type: ignore[arg-type]  # one of the words above
        target=target,
        counter=counter,
        socket=int(socket[1]) if socket else None,
        polled_by=polled.get(fd, ()),
        device=devices.get(entries.get("mnt_id", ""), ""),
        inode=int_of(entries.get("ino", "")) or 0,
        cite=cite,
    )


def _devices(files: Mapping[str, Section]) -> dict[str, str]:
    """Return the device of each mount, as major:minor, by the mount's id."""
    mountinfo = files.get("mountinfo")
    rows = (line.split() for line in text(mountinfo).splitlines()) if mountinfo else ()
    return {row[0]: row[2] for row in rows if len(row) > 2}


def most_descriptors(evidence: Evidence) -> Fact[int]:
    """Return how many descriptors the process may have open (RLIMIT_NOFILE, the soft limit)."""
    section = section_map(evidence, layout.WITNESS, layout.TASKS).get("limits")
    if section is None or section.error:
        return missing(evidence, layout.WITNESS, layout.TASKS)
    path = layout.evidence(layout.WITNESS, layout.TASKS)
    for place, line in enumerate(text(section).splitlines()):
        if line.startswith(OPEN_FILES) and (words := line.removeprefix(OPEN_FILES).split()) and words[0].isdecimal():
            return Known(int(words[0]), Cite(path, section.line + place, line.strip()))
    return Unknown(path, "/proc/PID/limits does not tell how many files may be open")


def poll_sets(evidence: Evidence) -> Fact[tuple[records.PollSet, ...]]:
    """Return what every thread sleeps on."""
    early = decode(evidence, layout.WITNESS, layout.POLLS, tuple[records.PollSet, ...])
    return (
        early
        if isinstance(early, Known)
        else decode(evidence, layout.PROC_FDS, layout.POLLS, tuple[records.PollSet, ...])
    )


def _polled(evidence: Evidence, files: Mapping[str, Section]) -> dict[int, tuple[int, ...]]:
    """Map each descriptor to the threads whose poll or epoll set holds it."""
    sets = poll_sets(evidence)
    polled: dict[int, tuple[int, ...]] = {}
    for poll in sets.value if isinstance(sets, Known) else ():
        waited = [entry.fd for entry in poll.fds]
        if poll.epoll_fd is not None:
            waited.append(poll.epoll_fd)
        for fd in tuple(waited):
            if info := files.get(f"fdinfo/{fd}"):
                waited += [int(target) for target in EPOLL_TARGET.findall(text(info))]
        for fd in waited:
            polled[fd] = (*polled.get(fd, ()), poll.tid)
    return polled
