"""Puts a diagnosis together: the cause, and beside it everything that was judged and is known of the VM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autopsy.dataclass import dataclass
from autopsy.diagnose import footprint, imported, kill_effect, known_bugs, lost_by_kill, request_paths, runbooks
from autopsy.diagnose.advice.advise import advise
from autopsy.diagnose.causes import CauseOrder, MatchedSignature, independent, is_pointer
from autopsy.diagnose.diagnosis import Cause, Claim, Confidence, Diagnosis, RuledOutBy, Secondary, Unproven, Where
from autopsy.diagnose.judging import Judged
from autopsy.diagnose.queries import naming, never_started
from autopsy.diagnose.signature import CannotTell, Match, RuledOut
from autopsy.diagnose.standstill import since
from autopsy.diagnose.waits import drawn
from autopsy.diagnose.waits.graph import Graph
from autopsy.facts.cite import Cite
from autopsy.facts.model.facts import Facts, Origin
from autopsy.facts.subjects import Subject

MOST_CITES = 24
UNKNOWN = "unknown"
PID = re.compile(r"\bPID\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said to be the cause, of which kind, how surely, and the chain of sentences that says why."""

    where: Where
    signature: str
    confidence: Confidence
    headline: str
    objects: tuple[Subject, ...]
    chain: tuple[Claim, ...]


def assemble(
    facts: Facts, judged: tuple[Judged, ...], ordered: CauseOrder, graph: Graph, verdict: Verdict
) -> Diagnosis:
    """Return the whole diagnosis of one verdict."""
    where, signature, confidence = verdict.where, verdict.signature, verdict.confidence
    headline, chain = verdict.headline, verdict.chain
    objects = tuple(dict.fromkeys(verdict.objects))
    if starting := never_started.still_starting(facts):
        headline, chain = never_started.said_first(headline), (*chain, starting)
    runbook = imported.runbook(facts, signature)
    steps = runbooks.advice(runbook)
    causes = independent(ordered)
    sure = (*causes[:1], *(cause for cause in causes[1:] if cause.match.confidence != "possible"))
    kill = kill_effect.of_kill(((cause.signature.id, cause.match.objects) for cause in sure), facts)
    bugs = known_bugs.about(signature, facts)
    undecided = tuple(
        Unproven(signature=signature.id, text=signature.title, missing=answer.missing)
        for signature, answer in judged
        if isinstance(answer, CannotTell)
    )
    return Diagnosis(
        where=where,
        signature=signature,
        confidence=confidence,
        headline=headline,
        objects=tuple(dict.fromkeys(map(naming.name, objects))),
        secondary=tuple(
            Secondary(
                where=other.where,
                signature=other.signature.id,
                headline=other.match.headline,
                because_of=holder.signature.id if holder else "",
                cites=_cites(other.match.claims)[:6],
                objects=tuple(dict.fromkeys(map(naming.name, other.match.objects))),
            )
            for other, holder in ordered.others
        ),
        cites=_cites(chain)[:MOST_CITES],
        ruled_out=tuple(
            [
                RuledOutBy(signature=signature.id, text=signature.title, why=answer.why, cites=answer.cites)
                for signature, answer in judged
                if isinstance(answer, RuledOut)
            ]
        ),
        cannot_tell=(*undecided, *_beyond_limits(facts)),
        chain=chain,
        next_steps=imported.next_steps(facts, (_filled(step, facts) for step in steps.steps)),
        lost_by_kill=(
            *(_filled(loss, facts) for loss in steps.lost),
            *lost_by_kill.lost_by_kill(facts, undecided),
        ),
        footprint=footprint.footprint(facts),
        side_effects=(*footprint.side_effects(facts), *_remarks(judged)),
        known_bugs=bugs,
        runbook=f"runbooks/{runbook}.md",
        paths=request_paths.paths(facts, where, frozenset(objects)),
        waits=drawn.draw(facts, graph),
        symbols=footprint.symbols(facts),
        subjects=tuple(map(naming.record, objects)),
        since=since(facts, where, objects),
        causes=tuple(map(_cause, causes)),
        kill=kill.effect,
        kill_why=kill.why,
        advice=advise(signature, objects, facts, kill=kill.effect, proven=confidence == "proven", known_bugs=bugs),
    )


def _beyond_limits(facts: Facts) -> Iterator[Unproven]:
    """Yield what was left out because it would have been too much: what is counted is at least that much."""
    for limit in facts.left_out:
        text = "more requests wait than are told: there are at least these" if limit.requests else limit.what
        yield Unproven(signature=UNKNOWN, text=text, missing=limit.why)


def _remarks(judged: tuple[Judged, ...]) -> tuple[Claim, ...]:
    """Return what was seen that is no finding but may matter, such as a host without CPU to spare."""
    pointers = [answer for _, answer in judged if isinstance(answer, Match) and is_pointer(answer)]
    return tuple(sentence for match in pointers for sentence in match.claims)


def _filled(text: str, facts: Facts) -> str:
    """Fill in the process's number, and no name: names are chosen by strangers, and steps are pasted into shells.

    The number that imported evidence tells is another process's here, if any's.
    """
    return PID.sub(str(facts.vm.pid), text) if "PID" in text and facts.origin is Origin.CAPTURE else text


def _cause(seen: MatchedSignature) -> Cause:
    return Cause(
        where=seen.where,
        signature=seen.signature.id,
        headline=seen.match.headline,
        objects=tuple(dict.fromkeys(map(naming.name, seen.match.objects))),
    )


def _cites(claims: tuple[Claim, ...]) -> tuple[Cite, ...]:
    return tuple(dict.fromkeys(cite for sentence in claims for cite in sentence.cites))
