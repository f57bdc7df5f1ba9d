"""UNIX sockets of other processes: who listens where, who is connected to whom."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import time
from collections.abc import Collection, Iterator
from itertools import chain, zip_longest

from autopsy import text
from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.linux.sock_diag import unix_sockets

MOST_TABLE = 16 << 20  # of /proc/PID/net/unix
SEARCH_SECONDS = 0.5  # for the owner of a socket, among all processes of the host

# Num RefCount Protocol Flags Type St Inode Path (net/unix/af_unix.c); the path is printed as it is, newlines and all.
ROW = re.compile(
    rb"^[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) [0-9A-F]{2} +(\d+)(?: (.*))?$", re.MULTILINE
)
ACCEPTS = 1 << 16  # __SO_ACCEPTCON
STREAM = 1

TCP_ESTABLISHED = 1  # sock_diag tells the states of UNIX sockets in TCP's numbers
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket: its inode, and the path that it was bound to (`@name` for an abstract one)."""

    inode: int
    path: str


def parse_listeners(table: bytes) -> tuple[Listener, ...]:
    """Return the listening stream sockets of a /proc/net/unix.

    A path may hold a newline and so forge a row: an inode that appears twice is believed in neither.
    """
    rows = [(int(row[3]), row) for row in ROW.finditer(table)]
    seen: dict[int, int] = {}
    for inode, _ in rows:
        seen[inode] = seen.get(inode, 0) + 1
    return tuple(
        Listener(inode, (row[4] or b"").decode("utf-8", "surrogateescape"))
        for inode, row in rows
        if int(row[1], 16) & ACCEPTS and int(row[2], 16) == STREAM and seen[inode] == 1
    )


def listeners_seen_by(pid: int) -> tuple[Listener, ...]:
    """Return every listener in the network namespace of a process.

    Raises:
        OSError: the process is gone, or the kernel does not show it to us.
    """
    return parse_listeners(read_kernel(f"/proc/{pid}/net/unix", MOST_TABLE))


def socket_of(pid: int, fd: int) -> int | None:
    """Return the inode of the socket that a descriptor is, None when it is something else."""
    try:
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return None
    return int(link[8:-1]) if link.startswith("socket:[") else None


def sockets_of(pid: int) -> frozenset[int]:
    """Return the inodes of every socket that a process holds, none when the kernel does not show them."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return frozenset()
    return frozenset(inode for number in numbers if (inode := socket_of(pid, int(number))) is not None)


def holds_one_of(pid: int, inodes: Collection[int]) -> bool:
    """Return whether a process holds one of these sockets, as far as the kernel shows its descriptors.

    It looks from both ends: a monitor's own socket is among the first of them, and its latest client's is the last.
    """
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except OSError:
        return False
    half = (len(numbers) + 1) // 2
    ends = chain.from_iterable(zip_longest(reversed(numbers[half:]), numbers[:half]))
    return any(number is not None and socket_of(pid, number) in inodes for number in ends)


def owners_of(inode: int, seconds: float = SEARCH_SECONDS) -> tuple[int, ...]:
    """Return the processes that hold a socket, as far as they can be searched in the time, but for ourselves."""
    return tuple(_search(inode, time.monotonic() + seconds))


def _search(inode: int, give_up: float) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if time.monotonic() > give_up:
            return
        if entry.isdecimal() and int(entry) != os.getpid() and inode in sockets_of(int(entry)):
            yield int(entry)


def clients_of(pid: int, path: str) -> tuple[int, ...]:
    """Return the inodes of the sockets that are connected to the listener bound at `path` in a process.

    Asks the kernel's socket diagnosis (sock_diag(7)), as `ss -xp` does, in the process's own network namespace: it
    enters that for good, so call it in a child. Nothing reaches the process.

    Raises:
        OSError: the kernel has no such diagnosis, or refuses it.
    """
    enter_network_of(pid)
    accepted = [
        end for end in unix_sockets().values() if end.state == TCP_ESTABLISHED and end.peer and end.name == path
    ]
    ours = sockets_of(pid) if accepted else frozenset()
    return tuple(end.peer for end in accepted if end.inode in ours)


def enter_network_of(pid: int) -> None:
    """Move this process into another's network namespace, for good.

    Raises:
        OSError: the kernel refuses it.
    """
    theirs = f"/proc/{pid}/ns/net"
    if os.readlink(theirs) == os.readlink("/proc/self/ns/net"):
        return
    descriptor = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), theirs)
    finally:
        os.close(descriptor)


def clients(address: str, pid: int, ours: int = 0) -> tuple[int, ...]:
    """Return the inodes of those who are connected to a socket of the target, but for our own (`ours`).

    Nothing is claimed where the kernel does not let us see. Enters the target's network namespace.
    """
    try:
        return tuple(client for client in clients_of(pid, address) if client != ours)
    except OSError:
        return ()


def names(holding: tuple[int, ...]) -> str:
    """Return whose sockets they are, such as "pvestatd (pid 812)"; empty for none."""
    return ", ".join(_names(client) for client in holding)


def listens(address: str, pid: int) -> bool:
    """Return whether the target itself listens there, so that we never question another program; in doubt it does."""
    try:
        listening = {listener.inode for listener in listeners_seen_by(pid) if listener.path == address}
    except OSError:
        return True
    return holds_one_of(pid, listening) or not sockets_of(pid)


def inode_of(connection: socket.socket) -> int:
    """Return the inode by which the kernel names a socket of ours."""
    return os.fstat(connection.fileno()).st_ino


def _names(client: int) -> str:
    names = [described(owner) for owner in owners_of(client)]
    return ", ".join(names) or "a process that we cannot see"


def described(pid: int) -> str:
    """Return a process as "pvestatd (pid 812)"."""
    return f"{_comm(pid)} (pid {pid})"


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as stream:
            return text.printable(stream.read(64).strip())
    except OSError:
        return "a process that has ended"
