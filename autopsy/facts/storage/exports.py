"""The exports of a storage daemon: what its clients take for their disks."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.facts import monitor
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, string
from autopsy.facts.model.facts import MonitorFact
from autopsy.facts.untrusted import mapping, sequence, text

QUESTION = "query-block-exports"


@dataclass(frozen=True, slots=True)
class ExportFact:
    """One export: its id, its kind as QEMU calls it ("nbd", "vhost-user-blk"), and the node that it gives away."""

    id: str
    kind: str
    node: str
    cite: Cite


def gather_exports(talk: MonitorFact, line: CommandLine) -> Fact[tuple[ExportFact, ...]]:
    """Return the exports that the daemon tells of; without an answer, those that it was started with."""
    listed = monitor.answer(talk, QUESTION)
    if isinstance(listed, Known):
        given = [mapping(export) for export in sequence(listed.value)]
        cite = listed.cite
    elif line.exports:
        given = [dict(export) for export in line.exports]
        cite = line.cite
    else:
        return Unknown(listed.evidence, listed.why)
    exports = tuple(
        ExportFact(
            name, string(export, "type"), string(export, "node-name"), Cite(cite.file, cite.line, f"export {name}")
        )
        for export in given
        if (name := text(export.get("id")))
    )
    return Known(exports, cite)
