"""The target's sockets, and who holds their other ends."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.fifo_opening import FifoOpening
from autopsy.bundle.process_wait import ProcessWait
from autopsy.bundle.records import SocketEnd
from autopsy.bundle.sections import REST, Section
from autopsy.capture.proc import fifo_openers, fuse, process_waits
from autopsy.capture.proc.fifos import ends_of_fifos, own_fifos
from autopsy.capture.proc.terminals import ends_of_terminals, own_terminals
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import (
    ReadFailures,
    SectionFile,
    SectionRead,
    Truncated,
    Unreadable,
    as_far_as_read,
    sections,
    take,
)
from autopsy.capture.step import Scene
from autopsy.dataclass import dataclass
from autopsy.linux.fd_holders import holders
from autopsy.linux.sock_diag import UnixSocket, unix_sockets

TABLES = ("net/unix", "net/tcp", "net/tcp6", "net/netlink", "net/packet")
MOST_TABLE = 8 << 20
SS = ("ss", "-a", "-t", "-x", "-i", "-n", "-p", "-e", "-o")
SS_SECONDS = 1.5
SEARCH_SECONDS = 1.0
MOST_PEERS = 32
MOST_THREADS = 64  # of one peer
CLONE_NEWNET = 0x40000000

# What tells whether a peer is alive, and what it waits for; `cmdline` takes its mmap_lock, so `exe` names it instead.
OF_A_PEER = ("comm", "status", "stat", "wchan", "syscall", "stack", "cgroup")
OF_A_PEERS_THREAD = ("comm", "stat", "wchan", "syscall", "stack")

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


def collect_sockets(
    scene: Scene, process: ProcDirectory, descriptors: Mapping[str, Section], trouble: ReadFailures
) -> None:
    """Store sockets.txt and sockets.json, given the sections of fds.txt."""
    own = own_sockets(descriptors)
    with SectionFile(scene, layout.SOCKETS) as stored:
        reads = [SectionRead(path, partial(process.read, path, MOST_TABLE)) for path in TABLES]
        reads.append(SectionRead("ss", partial(_ss, process), seconds=SS_SECONDS + 1, alters=True))
        for batch in sections(reads, scene.deadline, trouble):
            stored.append(batch)
        asked = take(
            [SectionRead("ends", partial(_ends, process, own, descriptors), seconds=SEARCH_SECONDS + 2, alters=True)],
            scene.deadline,
            trouble,
        )
        stored.append(section for section in asked.values() if section.error)
        ends = msgspec.json.decode(asked["ends"].data or b"[]", type=list[SocketEnd])
        scene.write_json(layout.SOCKET_ENDS, ends)
        daemons = fuse.collect_fuse(scene, process, descriptors, stored, trouble)
        others = _fifo_openers(scene, process, trouble) | _process_waits(scene, process, trouble)
        peers = sorted({pid for end in ends for pid in end.peer_pids} | daemons | others)
        if (left := len(peers) - MOST_PEERS) > 0:
            trouble.notes.append(f"{left} of {len(peers)} peers were not looked at")
            stored.append([Section(f"peer{REST}", b"", error=f"{left} more were not looked at")])
        for batch in sections(_peers(peers[:MOST_PEERS]), scene.deadline, trouble):
            stored.append(batch)


def _fifo_openers(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> frozenset[int]:
    """Store fifo-openings.json where a thread waited in open(2) of a FIFO; return who opens the other ends."""
    if fifo_openers.WAITS not in scene.earlier(layout.PROC_STACKS, layout.TASKS):
        return frozenset()
    search = SectionRead("openings", partial(fifo_openers.openings, process), seconds=fifo_openers.SEARCH_SECONDS + 1)
    return _searched(scene, search, trouble, layout.FIFO_OPENINGS, tuple[FifoOpening, ...])


def _process_waits(scene: Scene, process: ProcDirectory, trouble: ReadFailures) -> frozenset[int]:
    """Store process-waits.json where a thread waited for another process; return those that it can be."""
    seen = scene.earlier(layout.PROC_STACKS, layout.TASKS)
    if not any(function in seen for function in process_waits.WAITS):
        return frozenset()
    search = SectionRead("waits", partial(process_waits.waits, process), seconds=process_waits.SEARCH_SECONDS + 2)
    return _searched(scene, search, trouble, layout.PROCESS_WAITS, tuple[ProcessWait, ...])


def _searched(
    scene: Scene,
    search: SectionRead,
    trouble: ReadFailures,
    file: str,
    kind: type[tuple[FifoOpening | ProcessWait, ...]],
) -> frozenset[int]:
    """Store what a search finds, and return the processes that it names."""
    answer = take([search], scene.deadline, trouble)[search.name]
    records = msgspec.json.decode(answer.data or b"[]", type=kind)
    scene.write_json(file, records)
    return frozenset(pid for record in records for pid in record.peer_pids)


def own_sockets(descriptors: Mapping[str, Section]) -> dict[int, int]:
    """Return the inodes of the target's sockets with their lowest descriptor."""
    sockets: dict[int, int] = {}
    for name, section in descriptors.items():
        if name.startswith("fd/") and section.data.startswith(b"socket:["):
            sockets.setdefault(int(section.data[8:-1]), int(name[3:]))
    return sockets


def own_pipes(descriptors: Mapping[str, Section]) -> dict[int, int]:
    """Return the inodes of the target's pipes with their lowest descriptor."""
    pipes: dict[int, int] = {}
    for name, section in descriptors.items():
        if name.startswith("fd/") and section.data.startswith(b"pipe:["):
            pipes.setdefault(int(section.data[6:-1]), int(name[3:]))
    return pipes


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


def _enter_network(process: ProcDirectory) -> None:
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


def _ss(process: ProcDirectory) -> bytes | Truncated:
    _enter_network(process)
    return output(SS, seconds=SS_SECONDS)


def _ends(process: ProcDirectory, own: Mapping[int, int], descriptors: Mapping[str, Section]) -> bytes | Truncated:
    """Be the search for other ends, in a reader; return SocketEnd[] as JSON."""
    pipes, fifos, terminals = own_pipes(descriptors), own_fifos(process, descriptors), own_terminals(descriptors)
    _enter_network(process)
    try:
        unix = unix_sockets()
    except OSError:  # no unix_diag in this kernel: TCP peers can still be told
        unix = {}
    tcp = [row for path in ("net/tcp", "net/tcp6") for row in tcp_sockets(_whole(process, path))]
    ends = [_end(fd, inode, unix, tcp) for inode, fd in sorted(own.items(), key=lambda item: item[1])]
    links = {b"socket:[%d]" % end.peer_inode for end in ends if end.peer_inode}
    links |= {b"pipe:[%d]" % inode for inode in pipes} | {fifo.link for fifo in fifos}
    links |= {link for terminal in terminals for link in terminal.other_ends}
    held, complete = holders(links, seconds=SEARCH_SECONDS, but=process.pid)
    sockets = [
        msgspec.structs.replace(
            end,
            peer_pids=held.get(b"socket:[%d]" % (end.peer_inode or 0), ())
            or ((process.pid,) if end.peer_inode in own else ()),  # it can be connected to itself, and wait for that
        )
        for end in ends
    ]
    shared = [
        SocketEnd(fd=fd, inode=inode, family="pipe", peer_pids=pids)
        for inode, fd in sorted(pipes.items(), key=lambda item: item[1])
        if (pids := held.get(b"pipe:[%d]" % inode))  # most are a signal's way inside of QEMU
    ]
    data = msgspec.json.encode([*sockets, *shared, *ends_of_fifos(fifos, held), *ends_of_terminals(terminals, held)])
    return (
        data
        if complete
        else Truncated(data, f"the host has too many processes to search them all in {SEARCH_SECONDS} s")
    )


def _whole(process: ProcDirectory, path: str) -> bytes:
    try:
        data = process.read(path, MOST_TABLE)
    except OSError:
        return b""
    return as_far_as_read(data)


def _end(fd: int, inode: int, unix: Mapping[int, UnixSocket], tcp: list[TcpSocket]) -> SocketEnd:
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


def _peers(pids: list[int]) -> Iterator[SectionRead]:
    for pid in pids:
        for file in OF_A_PEER:
            yield SectionRead(f"peer/{pid}/{file}", partial(_peer_file, pid, file))
        yield SectionRead(f"peer/{pid}/exe", partial(os.readlink, f"/proc/{pid}/exe".encode()))
        tids = _threads(pid)
        if (left := len(tids) - MOST_THREADS) > 0:
            yield SectionRead(f"peer/{pid}/task{REST}", partial(_not_looked_at, left))
        for tid in tids[:MOST_THREADS]:
            for file in OF_A_PEERS_THREAD:
                yield SectionRead(f"peer/{pid}/task/{tid}/{file}", partial(_peer_file, pid, f"task/{tid}/{file}"))


def _not_looked_at(left: int) -> bytes:
    raise Unreadable(f"{left} more threads were not looked at")


def _peer_file(pid: int, file: str) -> bytes | Truncated:
    return read_file(f"/proc/{pid}/{file}")


def _threads(pid: int) -> list[int]:
    try:
        return sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []
