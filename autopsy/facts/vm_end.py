"""How the VM ended during its capture, and what it said and left."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.bundle import layout
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.evidence import Evidence, section_map
from autopsy.facts.model.facts import Asked, EndFact, LogLine

MOST_LINES = 5
MOST_LINE = 300


def gather_end(evidence: Evidence) -> Fact[EndFact]:
    """Return its end; Unknown where the capture does not tell of one."""
    end = evidence.manifest.end
    if end is None:
        return Unknown(layout.MANIFEST, "this capture tells of no end of the VM")
    return Known(
        EndFact(end=end, last_words=tuple(_last_words(evidence)), left=tuple(_left(evidence))),
        Cite(layout.MANIFEST, 0, f"end: after {end.after}"),
    )


def fell_silent(evidence: Evidence, asked: Asked) -> bool:
    """Tell whether a question went unanswered because QEMU was there to answer no more."""
    end = evidence.manifest.end
    exchange = asked.exchange
    return (
        end is not None
        and exchange.outcome == "no answer"
        and (
            (end.question and not end.answered and end.after == exchange.question)
            or exchange.asked_ns + int(exchange.ms * 1e6) >= end.alive_ns
        )
    )


def _last_words(evidence: Evidence) -> Iterator[LogLine]:
    for step in (layout.END, layout.HOST):
        path = layout.evidence(step, layout.VM_LOG)
        lines = evidence.read(path).decode("utf-8", "replace").splitlines()
        spoken = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        for number, line in spoken[-MOST_LINES:]:
            yield LogLine(line[:MOST_LINE], Cite(path, number, line[:200]))
        if spoken:
            return


def _left(evidence: Evidence) -> Iterator[LogLine]:
    path = layout.evidence(layout.END, layout.LEFT)
    for name, section in section_map(evidence, layout.END, layout.LEFT).items():
        if not section.error:
            yield LogLine(name, Cite(path, section.line, f"{name}: still there"))
