"""Says which of the signatures that are seen is the cause, and what is known where none of them is."""

from __future__ import annotations

from autopsy.diagnose import imported
from autopsy.diagnose.assembled import UNKNOWN as UNKNOWN  # noqa: PLC0414 - an answer of this module's
from autopsy.diagnose.assembled import Verdict, assemble
from autopsy.diagnose.catalogue import SIGNATURES
from autopsy.diagnose.causes import CauseOrder, order
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.judging import judge, judged_with_frames, matched
from autopsy.diagnose.queries import naming
from autopsy.diagnose.queries.quiet import nothing_looks_stuck
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.standstill import standstill
from autopsy.diagnose.waits.graph import Graph, build
from autopsy.diagnose.waits.leads import Nameless, leads, nameless
from autopsy.facts import subjects
from autopsy.facts.model.facts import Facts

MOST_ENDS = 3


def diagnose(facts: Facts) -> Diagnosis:
    """Return where the I/O is stuck and why, with everything that speaks for it, against it, and that is missing."""
    judged = judge(facts, imported.signatures(facts, SIGNATURES))
    graph = build(facts)
    ordered = order(matched(judged), leads(graph))
    if with_frames := judged_with_frames(facts, judged, ordered):
        judged = with_frames
        ordered = order(matched(judged), leads(graph))
    verdict = _of_the_cause(facts, ordered) or _unknown(facts, ordered, graph)
    return assemble(facts, judged, ordered, graph, verdict)


def _of_the_cause(facts: Facts, ordered: CauseOrder) -> Verdict | None:
    """Return what the primary cause says, None where there is none."""
    if (primary := ordered.primary) is None:
        return None
    match = primary.match
    return Verdict(
        where=primary.where,
        signature=primary.signature.id,
        confidence=match.confidence,
        headline=match.headline,
        objects=match.objects,
        chain=match.claims + standstill(facts, primary.where, match.objects),
    )


def _unknown(facts: Facts, ordered: CauseOrder, graph: Graph) -> Verdict:
    """Say what is known when no cause is: the effects that were seen, and what would tell their cause."""
    ends = nameless(graph)
    effects = [effect for effect, _ in ordered.others if not effect.match.harmless]
    headline = nothing_looks_stuck(facts) or "The evidence is not enough to tell"
    headline = imported.standstill(facts) or headline
    if effects:
        headline = f"{effects[0].match.headline}; what holds it up cannot be told from this evidence"
    if ends:
        headline = f"{_about(facts, ends[0])}; no signature can tell what it waits for itself"
        if place := imported.place(facts, ends[0].end) if isinstance(ends[0].end, subjects.Thread) else "":
            headline = f"{_about(facts, ends[0])}. {place}; why it stays there cannot be told from this evidence"
    return Verdict(
        where="unknown",
        signature=UNKNOWN,
        confidence="possible",
        headline=headline,
        objects=(
            *(end.end for end in ends[:MOST_ENDS]),
            *(effects[0].match.objects if effects else ()),
        ),
        chain=tuple(sentence for effect in effects for sentence in effect.match.claims),
    )


def _about(facts: Facts, end: Nameless) -> str:
    """Say of an end that no signature names what kind of thing it is, how many wait for it, and how long."""
    kind, name = naming.record(end.end).kind, naming.name(end.end)
    seconds = f", for the {facts.times.gap_seconds:.0f} s between the looks" if end.through else ""
    return f"{count(end.waiters, 'request or thread waits', 'requests and threads wait')} for {name} ({kind}){seconds}"
