"""The target's sockets, and who holds their other ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.other_programs import FifoOpening, ProcessWait, ServerLink
from autopsy.bundle.records import SocketEnd
from autopsy.bundle.sections import REST, Section
from autopsy.capture.proc import fifo_openers, fuse, process_waits, server_links
from autopsy.capture.proc.fifos import ends_of_fifos, own_fifos
from autopsy.capture.proc.socket_ends import MOST_TABLE, end_of, enter_network, socket_tables
from autopsy.capture.proc.terminals import ends_of_terminals, own_terminals
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import (
    ReadFailures,
    SectionFile,
    SectionRead,
    Truncated,
    Unreadable,
    sections,
    take,
)
from autopsy.capture.step import Scene
from autopsy.linux.fd_holders import holders

TABLES = ("net/unix", "net/tcp", "net/tcp6", "net/netlink", "net/packet")
SS = ("ss", "-a", "-t", "-x", "-i", "-n", "-p", "-e", "-o")
SS_SECONDS = 1.5
SEARCH_SECONDS = 1.0
MOST_PEERS = 32
MOST_THREADS = 64  # of one peer

# What tells whether a peer is alive, and what it waits for; `cmdline` takes its mmap_lock, so `exe` names it instead.
OF_A_PEER = ("comm", "status", "stat", "wchan", "syscall", "stack", "cgroup")
OF_A_PEERS_THREAD = ("comm", "stat", "wchan", "syscall", "stack")


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
        first = {pid for end in ends for pid in end.peer_pids} | daemons | others
        peers = [*sorted(first), *sorted(_server_links(scene, process, ends, daemons, trouble) - first)]
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


def _server_links(
    scene: Scene, process: ProcDirectory, ends: list[SocketEnd], daemons: frozenset[int], trouble: ReadFailures
) -> frozenset[int]:
    """Store server-links.json where the VM has a server that is another's client; return these others."""
    taken = [end for end in ends if end.peer_pids and end.family != "pipe"]
    if not taken and not daemons:
        return frozenset()
    links = partial(server_links.links, process, taken, daemons)
    search = SectionRead("links", links, seconds=server_links.SEARCH_SECONDS + 1, alters=True)
    return _searched(scene, search, trouble, layout.SERVER_LINKS, tuple[ServerLink, ...])


def _searched(
    scene: Scene,
    search: SectionRead,
    trouble: ReadFailures,
    file: str,
    kind: type[tuple[FifoOpening | ProcessWait | ServerLink, ...]],
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


def _ss(process: ProcDirectory) -> bytes | Truncated:
    enter_network(process)
    return output(SS, seconds=SS_SECONDS)


def _ends(process: ProcDirectory, own: Mapping[int, int], descriptors: Mapping[str, Section]) -> bytes | Truncated:
    """Be the search for other ends, in a reader; return SocketEnd[] as JSON."""
    pipes, fifos, terminals = own_pipes(descriptors), own_fifos(process, descriptors), own_terminals(descriptors)
    tables = socket_tables(process)
    ends = [end_of(fd, inode, tables) for inode, fd in sorted(own.items(), key=lambda item: item[1])]
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
