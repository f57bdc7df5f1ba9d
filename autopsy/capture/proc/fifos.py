"""The FIFOs that the target has open by a name, and who else has the very same ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from autopsy.bundle.records import SocketEnd
from autopsy.bundle.sections import Section
from autopsy.capture.reading.procfs import OPEN, ProcDirectory
from autopsy.dataclass import dataclass
from autopsy.linux.statx import FileStatus, without_asking

NO_FIFOS = (b"/dev/", b"/proc/", b"/sys/", b"/memfd:")


@dataclass(frozen=True, slots=True)
class Fifo:
    """One of them: its lowest descriptor, what its link says, and which file it is."""

    fd: int
    link: bytes
    status: FileStatus


def own_fifos(process: ProcDirectory, descriptors: Mapping[str, Section]) -> tuple[Fifo, ...]:
    """Return them. No server is asked: a file on storage that is dead would keep the answer for ever."""
    fifos: dict[bytes, Fifo] = {}
    for name, section in descriptors.items():
        link = section.data
        if name.startswith("fd/") and link.startswith(b"/") and not link.startswith(NO_FIFOS) and link not in fifos:
            with suppress(OSError):
                status = without_asking(process.folder, name)
                if stat.S_ISFIFO(status.mode):
                    fifos[link] = Fifo(int(name[3:]), link, status)
    return tuple(fifos.values())


def ends_of_fifos(fifos: Iterable[Fifo], held: Mapping[bytes, tuple[int, ...]]) -> Iterator[SocketEnd]:
    """Yield each with the processes that have it, too, of those that `held` a file of its name."""
    for fifo in fifos:
        if pids := tuple(pid for pid in held.get(fifo.link, ()) if _has(pid, fifo)):
            name = fifo.link.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
            yield SocketEnd(fd=fifo.fd, inode=fifo.status.inode, family="pipe", remote=name, peer_pids=pids)


def _has(pid: int, fifo: Fifo) -> bool:
    """Tell whether a process has that very file: the same name can mean another one in another container."""
    try:
        folder = os.open(f"/proc/{pid}/fd", OPEN | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        for number in os.listdir(folder):
            with suppress(OSError):
                if os.readlink(number.encode(), dir_fd=folder) == fifo.link:
                    same = without_asking(folder, number)
                    if (same.device, same.inode) == (fifo.status.device, fifo.status.inode):
                        return True
        return False
    finally:
        os.close(folder)
