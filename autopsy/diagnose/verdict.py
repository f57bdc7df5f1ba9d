"""Judges the facts by every signature and says which one is the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from autopsy.diagnose import (
    footprint,
    imported,
    kill_effect,
    known_bugs,
    lost_by_kill,
    request_paths,
    runbooks,
)
from autopsy.diagnose.advice.advise import advise
from autopsy.diagnose.catalogue import SIGNATURES
from autopsy.diagnose.causes import CauseOrder, MatchedSignature, independent, is_pointer, order
from autopsy.diagnose.diagnosis import (
    UNKNOWN,
    Cause,
    Claim,
    Confidence,
    Diagnosis,
    RuledOutBy,
    Secondary,
    Unproven,
    Where,
)
from autopsy.diagnose.queries import naming, never_started
from autopsy.diagnose.queries.quiet import nothing_looks_stuck
from autopsy.diagnose.queries.requests import title
from autopsy.diagnose.queries.silence import about_silence, silence_of
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.seen_before import since_seen
from autopsy.diagnose.signature import CannotTell as Undecided
from autopsy.diagnose.signature import Judgement, Match, RuledOut, Signature, claim
from autopsy.diagnose.waits import drawn
from autopsy.diagnose.waits.graph import Graph, build
from autopsy.diagnose.waits.leads import Nameless, leads, nameless
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known
from autopsy.facts.model.facts import Facts, Origin
from autopsy.facts.subjects import Subject

MOST_CITES = 24
MOST_ENDS = 3
NOTHING_STUCK = frozenset({"none", "vm-state"})
OF_A_MACHINE: frozenset[Where] = frozenset({"guest", "vm-state", "device", "migration"})
OF_EVERY_START = frozenset({"vm-awaits-client"})
PID = re.compile(r"\bPID\b")


class Judged(NamedTuple):
    """A signature with its answer."""

    signature: Signature
    answer: Judgement


def diagnose(facts: Facts) -> Diagnosis:
    """Return where the I/O is stuck and why, with everything that speaks for it, against it, and that is missing."""
    judged = tuple(Judged(each, _judge(each, facts)) for each in imported.signatures(facts, SIGNATURES))
    seen = [
        MatchedSignature(each.signature, each.answer, place)
        for place, each in enumerate(judged)
        if isinstance(each.answer, Match)
    ]
    graph = build(facts)
    found = order(seen, leads(graph))
    primary = found.primary
    if primary is None:
        return _unknown(facts, judged, found, graph)
    match = primary.match
    return _diagnosis(
        facts,
        judged,
        found,
        graph,
        where=primary.where,
        signature=primary.signature.id,
        confidence=match.confidence,
        headline=match.headline,
        objects=match.objects,
        chain=match.claims + _standstill(facts, primary.where, match.objects),
    )


def _judge(signature: Signature, facts: Facts) -> Judgement:
    if facts.vm.is_storage_daemon and signature.where in OF_A_MACHINE and signature.id not in OF_EVERY_START:
        return RuledOut(
            "a storage daemon has no guest, no device and no run state: clients of its exports are its guests"
        )
    try:
        return imported.held_to(facts, signature, signature.judge(facts))
    except Exception as error:  # noqa: BLE001 - a bug in one signature must not cost the other sixty their say
        return Undecided(f"nothing: this signature failed on the evidence ({type(error).__name__}: {error})")


def _unknown(facts: Facts, judged: tuple[Judged, ...], found: CauseOrder, graph: Graph) -> Diagnosis:
    """Say what is known when no cause is: the effects that were seen, and what would tell their cause."""
    ends = nameless(graph)
    effects = [each for each, _ in found.others if not each.match.harmless]
    headline = nothing_looks_stuck(facts) or "The evidence is not enough to tell"
    headline = imported.standstill(facts) or headline
    if effects:
        headline = f"{effects[0].match.headline}; what holds it up cannot be told from this evidence"
    if ends:
        headline = f"{_about(facts, ends[0])}; no signature can tell what it waits for itself"
        if place := imported.place(facts, ends[0].end) if isinstance(ends[0].end, subjects.Thread) else "":
            headline = f"{_about(facts, ends[0])}. {place}; why it stays there cannot be told from this evidence"
    return _diagnosis(
        facts,
        judged,
        found,
        graph,
        where="unknown",
        signature=UNKNOWN,
        confidence="possible",
        headline=headline,
        objects=(
            *(each.end for each in ends[:MOST_ENDS]),
            *(effects[0].match.objects if effects else ()),
        ),
        chain=tuple(each for effect in effects for each in effect.match.claims),
    )


def _about(facts: Facts, end: Nameless) -> str:
    """Say of an end that no signature names what kind of thing it is, how many wait for it, and how long."""
    kind, name = naming.record(end.end).kind, naming.name(end.end)
    seconds = f", for the {facts.times.gap_seconds:.0f} s between the looks" if end.through else ""
    return f"{count(end.waiters, 'request or thread waits', 'requests and threads wait')} for {name} ({kind}){seconds}"


def _diagnosis(
    facts: Facts,
    judged: tuple[Judged, ...],
    found: CauseOrder,
    graph: Graph,
    *,
    where: Where,
    signature: str,
    confidence: Confidence,
    headline: str,
    objects: tuple[Subject, ...],
    chain: tuple[Claim, ...],
) -> Diagnosis:
    objects = tuple(dict.fromkeys(objects))
    if starting := never_started.still_starting(facts):
        headline, chain = never_started.told(headline), (*chain, starting)
    runbook = imported.runbook(facts, signature)
    steps = runbooks.advice(runbook)
    causes = independent(found)
    sure = (*causes[:1], *(each for each in causes[1:] if each.match.confidence != "possible"))
    kill = kill_effect.of_kill(((each.signature.id, each.match.objects) for each in sure), facts)
    bugs = known_bugs.about(signature, facts)
    undecided = tuple(
        Unproven(signature=each.signature.id, text=each.signature.title, missing=each.answer.missing)
        for each in judged
        if isinstance(each.answer, Undecided)
    )
    return Diagnosis(
        where=where,
        signature=signature,
        confidence=confidence,
        headline=headline,
        objects=tuple(dict.fromkeys(map(naming.name, objects))),
        secondary=tuple(
            Secondary(
                where=each.where,
                signature=each.signature.id,
                headline=each.match.headline,
                because_of=holder.signature.id if holder else "",
                cites=_cites(each.match.claims)[:6],
                objects=tuple(dict.fromkeys(map(naming.name, each.match.objects))),
            )
            for each, holder in found.others
        ),
        cites=_cites(chain)[:MOST_CITES],
        ruled_out=tuple(
            RuledOutBy(
                signature=each.signature.id,
                text=each.signature.title,
                why=each.answer.why,
                cites=each.answer.cites,
            )
            for each in judged
            if isinstance(each.answer, RuledOut)
        ),
        cannot_tell=(*undecided, *_beyond_limits(facts)),
        chain=chain,
        next_steps=imported.next_steps(facts, (_filled(step, facts) for step in steps.steps)),
        lost_by_kill=(
            *(_filled(each, facts) for each in steps.lost),
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
        since=_since(facts, where, objects),
        causes=tuple(map(_cause, causes)),
        kill=kill.effect,
        kill_why=kill.why,
        advice=advise(signature, objects, facts, kill=kill.effect, proven=confidence == "proven", known_bugs=bugs),
    )


def _beyond_limits(facts: Facts) -> Iterator[Unproven]:
    """Yield what was left out because it would have been too much: what is counted is at least that much."""
    for each in facts.left_out:
        text = "more requests wait than are told: there are at least these" if each.requests else each.what
        yield Unproven(signature=UNKNOWN, text=text, missing=each.why)


def _remarks(judged: tuple[Judged, ...]) -> tuple[Claim, ...]:
    """Return what was seen that is no finding but may matter, such as a host without CPU to spare."""
    seen = [MatchedSignature(each.signature, each.answer, 0) for each in judged if isinstance(each.answer, Match)]
    return tuple(one for each in seen if is_pointer(each) for one in each.match.claims)


def _filled(text: str, facts: Facts) -> str:
    """Fill in the process's number, and no name: names are chosen by strangers, and steps are pasted into shells.

    The number that imported evidence tells is another process's here, if any's.
    """
    return PID.sub(str(facts.vm.pid), text) if facts.origin is Origin.CAPTURE else text


def _cause(seen: MatchedSignature) -> Cause:
    return Cause(
        where=seen.where,
        signature=seen.signature.id,
        headline=seen.match.headline,
        objects=tuple(dict.fromkeys(map(naming.name, seen.match.objects))),
    )


def _since(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> str:
    """Say since when it is stuck: what a watch saw, and how long the disk silent the longest had completed nothing."""
    seen = "" if where == "vm-state" else since_seen(facts, well=where == "none")
    return "; ".join(filter(None, (seen, _silent(facts, where, objects))))


def _silent(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> str:
    if where in NOTHING_STUCK or not isinstance(facts.disks, Known):
        return ""
    named = [each for each in facts.disks.value if subjects.disk(each) in objects]
    longest = max(named, key=lambda disk: silence.idle_ns if (silence := silence_of(disk)) else -1, default=None)
    words = about_silence(longest) if longest else ""
    return f"disk {title(longest)}: {words}" if longest and words else ""


def _cites(claims: tuple[Claim, ...]) -> tuple[Cite, ...]:
    return tuple(dict.fromkeys(cite for each in claims for cite in each.cites))


def _standstill(facts: Facts, where: Where, objects: tuple[Subject, ...]) -> tuple[Claim, ...]:
    """Say of each disk that the diagnosis names how its counters stood between the two snapshots."""
    if where == "none" or not isinstance(facts.disks, Known):
        return ()
    claims = []
    for disk in (each for each in facts.disks.value if subjects.disk(each) in objects):
        if not isinstance(disk.completed, Known) or not isinstance(disk.stats, Known):
            continue
        done = disk.completed.value
        words = (
            f"completed {done} requests"
            if done
            else f"completed none (its count stood at {disk.stats.value.completed})"
        )
        claims.append(
            claim(f"Between the two snapshots disk {disk.name} {words}.", disk.stats.cite, disk.completed.cite)
        )
    return tuple(claims[:8])
