"""Makes sure that a connection to a UNIX socket reaches the target itself, before a byte is sent to whoever it is."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autopsy.linux import unix_sockets as slot
from autopsy.linux.sock_diag import UnixSocket, unix_sockets
from autopsy.linux.unix_sockets import enter_network_of, holds_one_of, owners_of, sockets_of

SETTLE_SECONDS = 0.3  # for a listener to accept us: between two looks of ours
LOOK_SECONDS = 0.01
CREDENTIALS = struct.Struct("=iII")  # struct ucred
LOWER = 0xFFFFFFFF


class ForeignSocket(Exception):
    """The socket is not the target's own; its words say whose it is."""


@contextmanager
def address_of(path: str, pid: int) -> Iterator[str]:
    """Give a name to connect to, which means the file that was looked at whatever is laid in its place.

    Raises:
        Refused: what lies there is a link, no socket, or a socket that another process is bound to.
        OSError: nothing is there.
    """
    if path.startswith("@"):
        yield "\0" + path[1:]
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISLNK(status.st_mode):
            raise ForeignSocket("a symbolic link lies in the place of its monitor's socket")
        if not stat.S_ISSOCK(status.st_mode):
            raise ForeignSocket("what lies in the place of its monitor's socket is no socket")
        _is_bound_by(status.st_ino & LOWER, pid)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def enter(pid: int) -> None:
    """Go where the kernel tells of the target's sockets, if we may: its network namespace."""
    with suppress(OSError):
        enter_network_of(pid)


def _is_bound_by(file: int, pid: int) -> None:
    """Spare a stranger our connection, where the kernel tells that the file is another socket's."""
    try:
        known = unix_sockets()
    except OSError:
        return
    bound = [end.inode for end in known.values() if end.file == file]
    if bound and not holds_one_of(pid, bound) and sockets_of(pid).intersection(known):
        raise ForeignSocket(_belongs(bound))


def make_sure(connection: socket.socket, pid: int) -> None:
    """Compare who is at the other end with the target; call it before anything is sent.

    The kernel tells which socket ours is connected to, or which listener it waits at: that must be one of the target's
    own. Its credentials alone would not do: libvirt and systemd listen first, and hand the socket on.

    Raises:
        Refused: it is somebody else, or there is no telling.
    """
    give_up = time.monotonic() + SETTLE_SECONDS
    while True:
        others = _others_than(slot.inode_of(connection), pid)
        if others is not None and not others:
            return
        if time.monotonic() >= give_up:
            break
        time.sleep(LOOK_SECONDS)
    if others:
        raise ForeignSocket(_belongs(others))
    if _listened(connection) != pid:
        raise ForeignSocket("whose its monitor's socket is cannot be told")


def _others_than(ours: int, pid: int) -> list[int] | None:
    """Return the sockets at our other end that are not the target's, none where it is; None where none can be seen."""
    try:
        known = unix_sockets()
    except OSError:
        return None
    ends = _ends(ours, known)
    if ends and all(holds_one_of(pid, (end,)) for end in ends):
        return []
    own = sockets_of(pid)
    return [end for end in ends if end not in own] if ends and own else None


def _ends(ours: int, known: dict[int, UnixSocket]) -> list[int]:
    own = known.get(ours)
    if own is not None and own.peer:
        return [own.peer]
    return [end.inode for end in known.values() if ours in end.waiting]


def _listened(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return int(CREDENTIALS.unpack(raw)[0])


def _belongs(inodes: list[int]) -> str:
    owners = sorted({owner for inode in inodes for owner in owners_of(inode)})
    names = ", ".join(slot.described(owner) for owner in owners) or "one that we cannot see"
    return f"its monitor's socket belongs to another process: {names}"
