"""Which programs the servers of the VM are clients of themselves: one that is silent may wait for another."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from autopsy.bundle.other_programs import ServerLink
from autopsy.bundle.records import SocketEnd
from autopsy.capture.proc.socket_ends import SocketTables, end_of, socket_tables
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import Truncated
from autopsy.linux.fd_holders import holders

SEARCH_SECONDS = 1.0
MOST_HOPS = 3  # of servers that wait for one another, before it is told no further
MOST_LINKS = 16  # of one server


def links(process: ProcDirectory, ends: Iterable[SocketEnd], daemons: Iterable[int]) -> bytes | Truncated:
    """Return ServerLink[] as JSON, of the servers at the VM's ends and of daemons that serve it otherwise.

    Be it asked in a reader, which enters the VM's network namespace for good.
    """
    tables, give_up = socket_tables(process), time.monotonic() + SEARCH_SECONDS
    records: list[ServerLink] = []
    asked, complete = {process.pid}, True
    following = {*daemons, *(pid for end in ends if tables.made_by(end) for pid in end.peer_pids)} - asked
    for _ in range(MOST_HOPS):
        if not following:
            break
        asked |= following
        made = [(pid, remote, inode) for pid in sorted(following) for remote, inode in _made_by(pid, tables)]
        sought = {b"socket:[%d]" % inode for _, _, inode in made}
        held, all_seen = holders(sought, seconds=max(0.0, give_up - time.monotonic()), but=process.pid)
        complete &= all_seen
        new = [
            ServerLink(pid=pid, remote=remote, peer_pids=pids)
            for pid, remote, inode in made
            if (pids := tuple(other for other in held.get(b"socket:[%d]" % inode, ()) if other != pid))
        ]
        records += new
        following = {pid for link in new for pid in link.peer_pids} - asked
    data = msgspec.json.encode(records)
    return data if complete else Truncated(data, f"not all processes could be asked in {SEARCH_SECONDS} s")


def _made_by(pid: int, tables: SocketTables) -> Iterator[tuple[str, int]]:
    """Yield where the connections lead that a process has made, each place once, with the inode of the other end."""
    remotes: set[str] = set()
    for inode in sorted(_sockets_of(pid)):
        end = end_of(-1, inode, tables)
        if tables.made_by(end) and end.peer_inode and end.remote not in remotes and len(remotes) < MOST_LINKS:
            remotes.add(end.remote)
            yield end.remote, end.peer_inode


def _sockets_of(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError, ValueError):
                link = os.readlink(f"/proc/{pid}/fd/{number}")
                if link.startswith("socket:["):
                    yield int(link[8:-1])
