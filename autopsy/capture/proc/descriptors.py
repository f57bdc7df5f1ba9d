"""The target's descriptor table: where each one leads, and what the kernel tells of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from autopsy.bundle import layout
from autopsy.bundle.sections import REST, Section
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import ReadFailures, SectionFile, SectionRead, sections
from autopsy.capture.step import Scene

MOST_LINKS = 65536
MOST_FDINFO = 4096
MOST_MOUNTINFO = 4 << 20

# What the analyzer counts first, should the bound above be reached. Those named last may take a lock of their own that
# somebody stuck holds (tun takes rtnl_lock, epoll its own mutex).
ORDER = (b"anon_inode:[eventfd]", b"anon_inode:[timerfd]", b"anon_inode:[io_uring]", b"/", b"socket:", b"pipe:")
RISKY = (b"anon_inode:[eventpoll]", b"/dev/net/tun", b"/dev/tap", b"/dev/vhost-")


def store_descriptors(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> dict[str, Section]:
    """Store fds.txt and return its sections: `fd/<n>` the link, `fdinfo/<n>`, and last `mountinfo`.

    fdinfo's `mnt_id` leads to a line of mountinfo, which tells the file system without a stat(2) that could hang.
    """
    try:
        numbers = process.numbers("fd")
    except PermissionError:
        with SectionFile(scene, layout.FDS) as stored:
            stored.append([Section("fd", b"", error="EACCES")])
        trouble.notes.append("descriptors: EACCES")
        return {}
    known = dict(_links(process, numbers))
    taken = [Section(f"fd/{number}", link) for number, link in known.items()]
    if (left := len(numbers) - MOST_LINKS) > 0:
        taken.append(Section(f"fd{REST}", b"", error=f"{left} more descriptors were not read"))
    ordered = sorted(known, key=lambda number: (_rank(known[number]), number))
    with SectionFile(scene, layout.FDS) as stored:
        stored.append(taken)
        for batch in sections(_reads(process, known, ordered[:MOST_FDINFO]), scene.deadline, trouble):
            stored.append(batch)
            taken += batch
        if (left := len(ordered) - MOST_FDINFO) > 0:
            stored.append([Section(f"fdinfo{REST}", b"", error=f"{left} more descriptors were not read")])
    return {section.name: section for section in taken}


def links(process: ProcDirectory) -> dict[str, Section]:
    """Return the sections `fd/<n>` alone, none where the kernel does not show them."""
    try:
        numbers = process.numbers("fd")
    except PermissionError:
        return {}
    return {f"fd/{number}": Section(f"fd/{number}", link) for number, link in _links(process, numbers)}


def _links(process: ProcDirectory, numbers: list[int]) -> Iterator[tuple[int, bytes]]:
    """Read every link; that takes no lock and asks no file system."""
    for number in numbers[:MOST_LINKS]:
        try:
            yield number, process.link(f"fd/{number}")
        except OSError:
            continue  # closed meanwhile


def _rank(link: bytes) -> int:
    if link.startswith(RISKY):
        return len(ORDER) + 1
    return next((rank for rank, start in enumerate(ORDER) if link.startswith(start)), len(ORDER))


def _reads(process: ProcDirectory, known: Mapping[int, bytes], ordered: list[int]) -> Iterator[SectionRead]:
    for number in ordered:
        link = known[number]
        fate = link.decode("utf-8", "replace") if link.startswith(RISKY) else ""
        yield SectionRead(f"fdinfo/{number}", partial(process.read, f"fdinfo/{number}"), fate=fate)
    yield SectionRead("mountinfo", partial(process.read, "mountinfo", MOST_MOUNTINFO))
