"""Which processes of this host hold a descriptor that leads to a given place."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable


def holders(links: Iterable[bytes], *, seconds: float, but: int) -> tuple[dict[bytes, tuple[int, ...]], bool]:
    """Return the processes other than `but` that hold each link, and whether all processes could be asked in time.

    Reading /proc/PID/fd takes no lock of that process's memory map and asks no file system.
    """
    wanted = set(links)
    pids_of: dict[bytes, list[int]] = {}
    give_up = time.monotonic() + seconds
    for entry in os.listdir("/proc") if wanted else ():
        if not entry.isdecimal() or int(entry) == but:
            continue
        if time.monotonic() > give_up:
            return {link: tuple(sorted(pids)) for link, pids in pids_of.items()}, False
        for link in _links(f"/proc/{entry}/fd") & wanted:
            pids_of.setdefault(link, []).append(int(entry))
    return {link: tuple(sorted(pids)) for link, pids in pids_of.items()}, True


def _links(folder: str) -> set[bytes]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return set()  # it ended, or the kernel does not show it to us
    links = set()
    try:
        for number in os.listdir(descriptor):
            try:
                links.add(os.readlink(number.encode(), dir_fd=descriptor))
            except OSError:
                continue
    except OSError:
        return links
    finally:
        os.close(descriptor)
    return links
