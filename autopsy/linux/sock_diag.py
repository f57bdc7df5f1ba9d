"""Asks the kernel which UNIX sockets are connected to which, by sock_diag(7)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from autopsy.dataclass import dataclass

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
UDIAG_SHOW_NAME, UDIAG_SHOW_VFS, UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS, UDIAG_SHOW_RQLEN = 0x1, 0x2, 0x4, 0x8, 0x10
UNIX_DIAG_NAME, UNIX_DIAG_VFS, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN = 0, 1, 2, 3, 4
ALL_STATES = 0xFFFFFFFF

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req
ANSWER = struct.Struct("=BBBBIII")  # struct unix_diag_msg
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
QUEUES = struct.Struct("=II")  # struct unix_diag_rqlen
SECONDS = 1.0
PART_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One UNIX socket. `peer` is the inode of its other end, 0 when it has none, or none that anybody has accepted.

    Queues are bytes; a listener's count connections. `file` is the inode (its lower 32 bits) of the file that it is
    bound to, 0 when that is none. `waiting` are the inodes of the sockets whose connection a listener has not accepted.
    """

    inode: int
    state: int
    name: str
    peer: int
    receive_queue: int
    send_queue: int
    file: int = 0
    waiting: tuple[int, ...] = ()


def unix_sockets() -> dict[int, UnixSocket]:
    """Return every UNIX socket of our own network namespace, by inode.

    Raises:
        OSError: the kernel has no unix_diag, or does not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(SECONDS)
        show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN
        request = REQUEST.pack(socket.AF_UNIX, 0, 0, ALL_STATES, 0, show, 0, 0)
        header = HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        asking.send(header + request)
        sockets: dict[int, UnixSocket] = {}
        while True:
            for kind, body in messages(asking.recv(PART_BYTES)):
                if kind == NLMSG_DONE:
                    return sockets
                if kind == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    raise OSError(number, os.strerror(number))
                if (one := unix_socket(body)) is not None:
                    sockets[one.inode] = one


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each netlink message."""
    place = 0
    while place + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, place)
        if length < HEADER.size:
            return
        yield kind, data[place + HEADER.size : place + length]
        place += -(-length // 4) * 4


def unix_socket(body: bytes) -> UnixSocket | None:
    """Read one answer of unix_diag, None when it is too short to be one."""
    if len(body) < ANSWER.size:
        return None
    _, _, state, _, inode, _, _ = ANSWER.unpack_from(body)
    attributes = dict(_attributes(body[ANSWER.size :]))
    peer = attributes.get(UNIX_DIAG_PEER, b"")
    queues = attributes.get(UNIX_DIAG_RQLEN, b"")
    receive, send = QUEUES.unpack_from(queues) if len(queues) >= QUEUES.size else (0, 0)
    raw = attributes.get(UNIX_DIAG_NAME, b"")
    name = "@" + raw[1:].decode("utf-8", "replace") if raw.startswith(b"\0") else raw.decode("utf-8", "replace")
    icons = attributes.get(UNIX_DIAG_ICONS, b"")
    return UnixSocket(
        inode,
        state,
        name.rstrip("\0"),
        int.from_bytes(peer[:4], "little"),
        receive,
        send,
        file=int.from_bytes(attributes.get(UNIX_DIAG_VFS, b"")[:4], "little"),
        waiting=struct.unpack(f"={len(icons) // 4}I", icons[: len(icons) // 4 * 4]),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, place)
        if length < ATTRIBUTE.size:
            return
        yield kind, data[place + ATTRIBUTE.size : place + length]
        place += -(-length // 4) * 4
