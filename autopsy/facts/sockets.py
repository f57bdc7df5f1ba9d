"""Sockets of the process with their queues, FUSE mounts below its files, and the programs that answer for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from autopsy.bundle import layout, proc_stat, records
from autopsy.bundle.other_programs import FifoOpening, ProcessWait, ServerLink
from autopsy.bundle.sections import Section
from autopsy.facts.cite import Cite, Fact, Known
from autopsy.facts.evidence import Evidence, missing, section_map, text
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import (
    FifoOpeningFact,
    FuseMount,
    ListenerFact,
    PeerFact,
    PeerThread,
    ProcessWaitFact,
    SocketFact,
)
from autopsy.facts.threads import STACK_LINE, field, int_of, syscall

TEXT = layout.evidence(layout.PROC_FDS, layout.SOCKETS)
ENDS = layout.evidence(layout.PROC_FDS, layout.SOCKET_ENDS)
PROCESS_WAITS = layout.evidence(layout.PROC_FDS, layout.PROCESS_WAITS)
OPENINGS = layout.evidence(layout.PROC_FDS, layout.FIFO_OPENINGS)
MOST_HOPS, MOST_SERVERS = 3, 16  # as the capture's own: what asks what in turn
FUSE = re.compile(r"fuse/(\d+)/mount")
# The columns of ss: family, state, connections not accepted, and how many there may be, path, inode, …, users.
LISTENING = re.compile(
    r"u_\w{1,4} +LISTEN +(\d{1,9}) +(\d{1,9}) +(/\S{1,4096}) +\d{1,20} [^\n]{0,80}?users:\(([^\n]{1,400})\)"
)
LISTENER = re.compile(r'\("([^"\n]{1,64})",pid=(\d{1,9}),')


def gather_sockets(evidence: Evidence, step: str = layout.PROC_FDS) -> Fact[tuple[SocketFact, ...]]:
    """Return the target's sockets, each with the programs at its other end where they are on this host."""
    ends = decode(evidence, step, layout.SOCKET_ENDS, tuple[records.SocketEnd, ...])
    if not isinstance(ends, Known):
        return ends
    files = section_map(evidence, step, layout.SOCKETS)
    programs = _Servers(evidence, files, step)
    sockets = (
        SocketFact(
            fd=end.fd,
            inode=end.inode,
            family=end.family,
            state=end.state,
            local=end.local,
            remote=end.remote,
            received_queue=end.receive_queue,
            send_queue=end.send_queue,
            peers=tuple(map(programs.of, end.peer_pids)),
            cite=Cite(ends.cite.file, 0, f"fd {end.fd}: {end.family} {end.state} {end.local} to {end.remote}"),
            accepted=end.accepted,
        )
        for end in ends.value
    )
    return Known(tuple(sockets), ends.cite)


def gather_sockets_again(evidence: Evidence, first: Fact[tuple[SocketFact, ...]]) -> Fact[tuple[SocketFact, ...]]:
    """Return them as the second look had them; where no program was at any other end there is nothing to look for."""
    if isinstance(first, Known) and not any(socket.peers for socket in first.value):
        return first
    return gather_sockets(evidence, layout.SECOND_EXPOSURE)


def gather_fuse_again(evidence: Evidence, first: Fact[tuple[FuseMount, ...]]) -> Fact[tuple[FuseMount, ...]]:
    """Return the FUSE mounts as the second look had them, where there was one."""
    if isinstance(first, Known) and not first.value:
        return first
    return fuse(evidence, layout.SECOND_EXPOSURE)


def _server_links(evidence: Evidence, step: str) -> dict[int, list[int]]:
    """Return the programs to which each has made a connection itself, by its pid."""
    links = decode(evidence, step, layout.SERVER_LINKS, tuple[ServerLink, ...])
    servers: dict[int, list[int]] = {}
    for link in links.value if isinstance(links, Known) else ():
        servers.setdefault(link.pid, []).extend(link.peer_pids)
    return servers


class _Servers:
    """Tells of programs with those that they ask in turn: each once, whatever a stranger's bundle says of them."""

    def __init__(self, evidence: Evidence, files: Mapping[str, Section], step: str) -> None:
        self._files, self._step = files, step
        self._links = _server_links(evidence, step)
        self._known: dict[int, PeerFact] = {}

    def of(self, pid: int) -> PeerFact:
        if pid not in self._known:
            self._known[pid] = self._below(pid, {pid}, MOST_HOPS)
        return self._known[pid]

    def _below(self, pid: int, seen: set[int], hops: int) -> PeerFact:
        asked = [other for other in self._links.get(pid, ()) if other not in seen][:MOST_SERVERS] if hops else []
        seen.update(asked)
        servers = tuple(self._below(other, seen, hops - 1) for other in dict.fromkeys(asked))
        return replace(peer(pid, self._files, self._step), servers=servers)


def peer(pid: int, files: Mapping[str, Section], step: str = layout.PROC_FDS) -> PeerFact:
    """Return what /proc told of a program that the VM depends on."""

    def part(name: str) -> str:
        section = files.get(f"peer/{pid}/{name}")
        return "" if section is None or section.error else text(section)

    status = files.get(f"peer/{pid}/status")
    stack = STACK_LINE.findall(part("stack"))
    return PeerFact(
        pid=pid,
        comm=part("comm").rstrip("\n"),
        state=field(part("status"), "State")[:1] or proc_stat.parse(part("stat").encode()).state,
        wchan=part("wchan").strip().strip("0"),
        kernel_stack=tuple(stack),
        cite=Cite(layout.evidence(step, layout.SOCKETS), status.line if status else 0, f"peer {pid}"),
        threads=tuple(_threads(pid, files, step)),
    )


def _threads(pid: int, files: Mapping[str, Section], step: str) -> Iterator[PeerThread]:
    prefix = f"peer/{pid}/task/"
    for name, section in files.items():
        if not (name.startswith(prefix) and name.endswith("/stat")) or section.error:
            continue
        if (tid := int_of(name.removeprefix(prefix).removesuffix("/stat"))) is None:
            continue

        def part(file: str, at: str = f"{prefix}{tid}/") -> str:
            section = files.get(f"{at}{file}")
            return "" if section is None or section.error else text(section)

        wchan, stack = part("wchan").strip().strip("0"), tuple(STACK_LINE.findall(part("stack")))
        yield PeerThread(
            tid=tid,
            state=proc_stat.parse(section.data).state,
            wchan=wchan,
            call=syscall(part("syscall"), (wchan, *stack)).name,
            kernel_stack=stack,
            cite=Cite(layout.evidence(step, layout.SOCKETS), section.line, f"peer {pid}, thread {tid}"),
        )


def fuse(evidence: Evidence, step: str = layout.PROC_FDS) -> Fact[tuple[FuseMount, ...]]:
    """Return the FUSE mounts that the VM's files lie on, with how many requests wait and who should answer."""
    files = section_map(evidence, step, layout.SOCKETS)
    if not files:
        return missing(evidence, step, layout.SOCKETS)
    path, programs = layout.evidence(step, layout.SOCKETS), _Servers(evidence, files, step)
    mounts = []
    for name, section in files.items():
        if not (match := FUSE.fullmatch(name)):
            continue
        place = text(section).partition(" - ")[0].split()

        def part(file: str, minor: str = match[1]) -> str:
            section = files.get(f"fuse/{minor}/{file}")
            return "" if section is None or section.error else text(section)

        daemons = part("daemon")
        pids = [pid for line in daemons.splitlines() if (pid := int_of(line)) is not None]
        mounts.append(
            FuseMount(
                path=place[4] if len(place) > 4 else "",
                waiting=int_of(part("waiting").strip()) or 0,
                sure="one of" not in daemons,
                daemons=tuple(map(programs.of, pids)),
                cite=Cite(path, section.line, name),
            )
        )
    return Known(tuple(mounts), Cite(path))


def gather_listeners(evidence: Evidence) -> tuple[ListenerFact, ...]:
    """Return who listens at a UNIX socket's path, as ss(8) tells, each the first program that has it."""
    section = section_map(evidence, layout.PROC_FDS, layout.SOCKETS).get("ss")
    if section is None:
        return ()
    listeners = []
    for place, line in enumerate(text(section).splitlines()):
        if (row := LISTENING.match(line)) and (user := LISTENER.search(row[4])):
            cite = Cite(TEXT, section.line + place, line[:200])
            listeners.append(
                ListenerFact(
                    path=row[3], waiting=int(row[1]), room=int(row[2]), pid=int(user[2]), comm=user[1], cite=cite
                )
            )
    return tuple(listeners)


def gather_fifo_openings(evidence: Evidence) -> tuple[FifoOpeningFact, ...]:
    """Return the FIFOs that threads wait in open(2) of, with the programs that open the other ends."""
    openings = decode(evidence, layout.PROC_FDS, layout.FIFO_OPENINGS, tuple[FifoOpening, ...])
    if not isinstance(openings, Known):
        return ()
    files = section_map(evidence, layout.PROC_FDS, layout.SOCKETS)
    return tuple(
        FifoOpeningFact(
            tid=opening.tid,
            path=opening.path,
            peers=tuple(peer(pid, files) for pid in opening.peer_pids),
            cite=Cite(OPENINGS, 0, f"thread {opening.tid} opens {opening.path}"),
        )
        for opening in openings.value
    )


def gather_process_waits(evidence: Evidence) -> tuple[ProcessWaitFact, ...]:
    """Return the threads that wait in the kernel for another process, with those that it can be."""
    waits = decode(evidence, layout.PROC_FDS, layout.PROCESS_WAITS, tuple[ProcessWait, ...])
    if not isinstance(waits, Known):
        return ()
    files = section_map(evidence, layout.PROC_FDS, layout.SOCKETS)
    return tuple(
        ProcessWaitFact(
            tid=wait.tid,
            kind=wait.kind,
            peers=tuple(peer(pid, files) for pid in wait.peer_pids),
            cite=Cite(PROCESS_WAITS, 0, f"thread {wait.tid} waits for a {wait.kind}"),
        )
        for wait in waits.value
    )
