"""Puts the facts to every signature: each answers for itself, and one that fails costs its own answer alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from autopsy.diagnose import imported
from autopsy.diagnose.causes import CauseOrder, MatchedSignature
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.frames.catalogue import FROM_FRAMES
from autopsy.diagnose.queries.socket_peers import awaited
from autopsy.diagnose.queries.threads import by_tid, slept_through
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts, Origin

OF_A_MACHINE: frozenset[Where] = frozenset({"guest", "vm-state", "device", "migration"})
OF_EVERY_START = frozenset({"vm-awaits-client"})
# Of these a capture sees more than frames, and has signatures of its own for it.
OWN = frozenset({"qemu-crashed", "vhost-user-question", "chardev-write-waits", "rcu-readers-wait"})
ASKED = tuple(signature for signature in FROM_FRAMES if signature.id not in OWN)
# They say that a thread stands or runs, and not what for.
SAY_NOT_WHY = frozenset({"main-loop-blocked", "main-loop-spins", "bql-holder-blocked", "thread-asleep"})


Judged = tuple[Signature, Judgement]  # a signature with its answer


def judge(facts: Facts, signatures: Iterable[Signature]) -> tuple[Judged, ...]:
    """Return every signature's answer, in their order."""
    if facts.origin is Origin.CAPTURE and not facts.vm.is_storage_daemon:
        return tuple([(signature, _of_signature(signature, facts)) for signature in signatures])
    return tuple([(signature, _answer(signature, facts)) for signature in signatures])


def judged_with_frames(facts: Facts, judged: Sequence[Judged], ordered: CauseOrder) -> tuple[Judged, ...]:
    """Return the answers with those that frames give beside them; none where those are not needed, or tell nothing.

    The frames of a capture are asked for the mechanism, as those of a paste are, where nothing else of it names one.
    """
    if facts.origin is not Origin.CAPTURE or not _is_open(ordered.primary):
        return ()
    vague = ordered.primary if ordered.primary and _says_not_why(ordered.primary) else None
    matches = [
        (signature, _as_seen(facts, match))
        for signature, match in judge(facts, ASKED)
        if isinstance(match, Match) and (vague is None or _says_why(vague, signature, match))
    ]
    if not matches:
        return ()
    behind = vague.signature if vague else None
    return (
        *(
            (signature, replace(answer, effect=True) if signature is behind and isinstance(answer, Match) else answer)
            for signature, answer in judged
        ),
        *matches,
    )


def _is_open(primary: MatchedSignature | None) -> bool:
    """Tell whether no cause is known, or one that is no more than a place, or a health that is not proven."""
    if primary is None or _says_not_why(primary):
        return True
    return primary.where == "none" and primary.match.confidence != "proven"


def _says_not_why(primary: MatchedSignature) -> bool:
    """Tell whether a match names threads alone: a file or a program that they wait for is a reason."""
    only_threads = all(isinstance(subject, subjects.Thread) for subject in primary.match.objects)
    return primary.signature.id in SAY_NOT_WHY and only_threads


def _says_why(vague: MatchedSignature, signature: Signature, match: Match) -> bool:
    """Tell whether a match speaks of the same thread, and finds its reason elsewhere than where it stands."""
    return (match.where or signature.where) != vague.where and not set(match.objects).isdisjoint(vague.match.objects)


def _as_seen(facts: Facts, match: Match) -> Match:
    """Return the match as a capture shows it: no surer than its looks, and speaking for what its threads wait for."""
    alive = isinstance(facts.monitor.alive, Known) and facts.monitor.alive.value
    threads = [by_tid(facts)[thread.tid] for thread in match.objects if isinstance(thread, subjects.Thread)]
    once = any(slept_through(thread) is None for thread in threads)
    return replace(
        match,
        confidence="possible" if once else "likely",
        stands=(*match.stands, *(subject for thread in threads for subject in awaited(facts, thread))),
        implied=False,
        beside=alive,
    )


def matched(judged: Iterable[Judged]) -> list[MatchedSignature]:
    """Return those that are seen."""
    return [
        MatchedSignature(signature, answer, place)
        for place, (signature, answer) in enumerate(judged)
        if isinstance(answer, Match)
    ]


def _answer(signature: Signature, facts: Facts) -> Judgement:
    if facts.vm.is_storage_daemon and signature.where in OF_A_MACHINE and signature.id not in OF_EVERY_START:
        return RuledOut(
            "a storage daemon has no guest, no device and no run state: clients of its exports are its guests"
        )
    return imported.held_to(facts, signature, _of_signature(signature, facts))


def _of_signature(signature: Signature, facts: Facts) -> Judgement:
    try:
        return signature.judge(facts)
    except Exception as error:  # noqa: BLE001 - a bug in one signature must not cost the other sixty their say
        return CannotTell(f"nothing: this signature failed on the evidence ({type(error).__name__}: {error})")
