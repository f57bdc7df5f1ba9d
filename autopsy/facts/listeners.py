"""The programs of the host that listen at a UNIX socket's path, as ss(8) tells of them."""

from __future__ import annotations

import re

from autopsy.bundle import layout
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence, section_map, text
from autopsy.facts.model.host import ListenerFact

# Its columns: family, state, connections that nobody has accepted, and how many there may be, path, inode, …, users.
ROW = re.compile(
    r"u_\w{1,4} +LISTEN +(\d{1,9}) +(\d{1,9}) +(/\S{1,4096}) +\d{1,20} [^\n]{0,80}?users:\(([^\n]{1,400})\)"
)
USER = re.compile(r'\("([^"\n]{1,64})",pid=(\d{1,9}),')


def gather_listeners(evidence: Evidence) -> tuple[ListenerFact, ...]:
    """Return them, each with the first program that has it; none where ss told nothing."""
    section = section_map(evidence, layout.PROC_FDS, layout.SOCKETS).get("ss")
    if section is None:
        return ()
    found = []
    for place, line in enumerate(text(section).splitlines()):
        if (row := ROW.match(line)) and (user := USER.search(row[4])):
            cite = Cite(layout.evidence(layout.PROC_FDS, layout.SOCKETS), section.line + place, line[:200])
            found.append(
                ListenerFact(
                    path=row[3], waiting=int(row[1]), room=int(row[2]), pid=int(user[2]), comm=user[1], cite=cite
                )
            )
    return tuple(found)
