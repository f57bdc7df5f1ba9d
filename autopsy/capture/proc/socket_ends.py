"""Reads the kernel's tables of sockets: what is connected to what, in a process's network namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Mapping

from autopsy.bundle.records import SocketEnd
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import Unreadable, as_far_as_read
from autopsy.dataclass import dataclass
from autopsy.linux.sock_diag import UnixSocket, unix_sockets

MOST_TABLE = 8 << 20
CLONE_NEWNET = 0x40000000

# include/net/tcp_states.h; a UNIX socket's state uses the same numbers.
STATES = {
    1: "ESTAB",
    2: "SYN-SENT",
    3: "SYN-RECV",
    4: "FIN-WAIT-1",
    5: "FIN-WAIT-2",
    6: "TIME-WAIT",
    7: "UNCONN",
    8: "CLOSE-WAIT",
    9: "LAST-ACK",
    10: "LISTEN",
    11: "CLOSING",
}


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One row of /proc/net/tcp or tcp6; an IPv4 address mapped into IPv6 is told as IPv4."""

    inode: int
    state: int
    local: str
    remote: str
    receive_queue: int
    send_queue: int


@dataclass(frozen=True, slots=True)
class SocketTables:
    """Every UNIX and TCP socket of a network namespace."""

    unix: Mapping[int, UnixSocket]
    tcp: list[TcpSocket]

    def made_by(self, end: SocketEnd) -> bool:
        """Return whether it is this end that has made the connection: who took it has a name, or listens there still.

        A UNIX socket that connects has no name, as a rule.
        """
        if end.family == "unix":
            return bool(end.remote) and not end.local
        port = end.local.rpartition(":")[2]
        return end.family == "tcp" and not any(
            STATES.get(row.state) == "LISTEN" and row.local.rpartition(":")[2] == port for row in self.tcp
        )


def socket_tables(process: ProcDirectory) -> SocketTables:
    """Return those of a process's network namespace, which this reader enters for good."""
    enter_network(process)
    try:
        unix = unix_sockets()
    except OSError:  # no unix_diag in this kernel: TCP peers can still be told
        unix = {}
    return SocketTables(unix, [row for path in ("net/tcp", "net/tcp6") for row in tcp_sockets(_whole(process, path))])


def tcp_sockets(table: bytes) -> list[TcpSocket]:
    """Read /proc/net/tcp or tcp6; rows that are damaged are left out."""
    sockets = []
    for row in table.splitlines()[1:]:
        words = row.split()
        try:
            send, _, receive = words[4].partition(b":")
            local, remote = (_address(words[place].decode()) for place in (1, 2))
            sockets.append(TcpSocket(int(words[9]), int(words[3], 16), local, remote, int(receive, 16), int(send, 16)))
        except (IndexError, ValueError, struct.error):
            continue
    return sockets


def _address(word: str) -> str:
    host, _, port = word.partition(":")
    # Words of 32 bits, each printed as the host's byte order reads it.
    raw = struct.pack(f">{len(host) // 8}I", *struct.unpack(f"={len(host) // 8}I", bytes.fromhex(host)))
    if len(raw) == 16 and raw.startswith(bytes(10) + b"\xff\xff"):
        raw = raw[12:]
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, raw)
    return f"[{text}]:{int(port, 16)}" if len(raw) == 16 else f"{text}:{int(port, 16)}"


def enter_network(process: ProcDirectory) -> None:
    """Move this reader into the target's network namespace, where its sockets are told of."""
    if process.link("ns/net") == os.readlink(b"/proc/self/ns/net"):
        return
    namespace = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process.folder)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, CLONE_NEWNET):
            why = os.strerror(ctypes.get_errno())
            raise Unreadable(f"the target is in another network namespace: {why}")
    finally:
        os.close(namespace)


def _whole(process: ProcDirectory, path: str) -> bytes:
    try:
        data = process.read(path, MOST_TABLE)
    except OSError:
        return b""
    return as_far_as_read(data)


def end_of(fd: int, inode: int, tables: SocketTables) -> SocketEnd:
    """Return one socket, and what it is connected to."""
    unix, tcp = tables.unix, tables.tcp
    if one := unix.get(inode):
        other = unix.get(one.peer)
        asked = None if other else _unix_listener(inode, unix)
        other = other or asked
        return SocketEnd(
            fd=fd,
            inode=inode,
            family="unix",
            state=STATES.get(one.state, str(one.state)),
            local=one.name,
            remote=other.name if other else "",
            receive_queue=one.receive_queue,
            send_queue=one.send_queue,
            peer_inode=one.peer or (asked.inode if asked else None),
            accepted=asked is None,
        )
    if row := next((other for other in tcp if other.inode == inode), None):
        other_row = next((other for other in tcp if (other.local, other.remote) == (row.remote, row.local)), None)
        return SocketEnd(
            fd=fd,
            inode=inode,
            family="tcp",
            state=STATES.get(row.state, str(row.state)),
            local=row.local,
            remote=row.remote,
            receive_queue=row.receive_queue,
            send_queue=row.send_queue,
            peer_inode=((other_row.inode or _listener(other_row, tcp)) or None) if other_row else None,
            accepted=other_row is None or bool(other_row.inode) or not _listener(other_row, tcp),
        )
    return SocketEnd(fd=fd, inode=inode, family="other")


def _unix_listener(inode: int, unix: Mapping[int, UnixSocket]) -> UnixSocket | None:
    """Return the socket that should accept a connection which nobody has accepted yet, None where it is not here."""
    return next((listener for listener in unix.values() if inode in listener.waiting), None)


def _listener(row: TcpSocket, tcp: list[TcpSocket]) -> int:
    """Return the socket that should accept a connection which nobody has accepted yet, 0 where it is not here."""
    address, _, port = row.local.rpartition(":")
    wanted = {f"{host}:{port}" for host in (address, "0.0.0.0", "[::]")}  # noqa: S104 - how a table writes "any"
    return next(
        (listener.inode for listener in tcp if STATES.get(listener.state) == "LISTEN" and listener.local in wanted), 0
    )
