"""Sockets of the process with their queues, and the programs at their other ends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autopsy.bundle import names
from autopsy.bundle.sections import Section
from autopsy.facts.cite import Cite, Fact, Known
from autopsy.facts.evidence import Evidence, missing, section_map, text
from autopsy.facts.model import SocketFact
from autopsy.facts.threads import fields

LINE = re.compile(
    r"(?:(?P<kind>u_\w+|tcp|udp|mptcp)\s+)?(?P<state>[A-Z][A-Z0-9-]+)\s+(?P<received>\d+)\s+(?P<sent>\d+)\s+(?P<rest>\S.*)"
)
USER = re.compile(r'\("(?P<program>[^"]*)",pid=(?P<pid>\d+),fd=(?P<fd>\d+)\)')


@dataclass(frozen=True, slots=True)
class Line:
    """One socket as ss told of it."""

    family: str
    state: str
    local: str
    remote: str
    inode: str
    peer_inode: str
    received: int
    sent: int
    users: tuple[tuple[str, int, int], ...]
    cite: Cite


def gather(evidence: Evidence) -> Fact[tuple[SocketFact, ...]]:
    """Return the target's sockets that ss knew."""
    found = section_map(evidence, names.PROC_FDS, names.SOCKETS)
    if not found:
        return missing(evidence, names.PROC_FDS, names.SOCKETS)
    path = names.evidence(names.PROC_FDS, names.SOCKETS)
    lines = [line for name, section in found.items() if name.startswith("ss") for line in _lines(path, section)]
    pid = evidence.manifest.target.pid
    sockets = []
    for line in lines:
        for _, owner, fd in line.users:
            if owner == pid:
                sockets.append(_socket(line, fd, pid, lines, found))
    return Known(tuple(sockets), Cite(path))


def _socket(line: Line, fd: int, pid: int, lines: list[Line], found: dict[str, Section]) -> SocketFact:
    program, peer_pid = "", 0
    for other in lines:
        unix = line.family == "unix" and line.peer_inode not in {"", "0"} and other.inode == line.peer_inode
        tcp = line.family == "tcp" and (other.local, other.remote) == (line.remote, line.local)
        if unix or tcp:
            program, peer_pid = next(((name, who) for name, who, _ in other.users if who != pid), (program, peer_pid))
    status = found.get(f"peer/{peer_pid}/status")
    state = fields(text(status)).get("State", "")[:1] if status else ""
    if not state and (stat := found.get(f"peer/{peer_pid}/stat")):
        state = text(stat).rpartition(")")[2].strip()[:1]
    return SocketFact(
        fd=fd,
        inode=int(line.inode) if line.inode.isdecimal() else 0,
        family=line.family if line.family in {"unix", "tcp"} else "other",  # type: ignore[arg-type]  # one of three words
        state=line.state,
        local=line.local,
        remote=line.remote,
        received_queue=line.received,
        send_queue=line.sent,
        peer=program,
        peer_pid=peer_pid,
        peer_state=state,
        cite=line.cite,
    )


def _lines(path: str, section: Section) -> list[Line]:
    found = []
    for number, raw in enumerate(text(section).splitlines()):
        match = LINE.match(raw)
        if match is None:
            continue
        words = match["rest"].split()
        users = tuple((user["program"], int(user["pid"]), int(user["fd"])) for user in USER.finditer(match["rest"]))
        unix = (match["kind"] or "").startswith("u_") or (
            len(words) > 3 and words[1].isdecimal() and words[3].isdecimal()
        )
        if unix and len(words) >= 4:
            local, inode, remote, peer = words[:4]
        elif len(words) >= 2:
            local, remote = words[:2]
            inode, peer = next((word[4:] for word in words if word.startswith("ino:")), ""), ""
        else:
            continue
        found.append(
            Line(
                family="unix" if unix else "tcp" if match["kind"] in {None, "tcp", "mptcp"} else "other",
                state=match["state"],
                local=local,
                remote=remote,
                inode=inode,
                peer_inode=peer,
                received=int(match["received"]),
                sent=int(match["sent"]),
                users=users,
                cite=Cite(path, section.line + number, raw.strip()[:200]),
            )
        )
    return found
