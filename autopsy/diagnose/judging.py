"""Puts the facts to every signature: each answers for itself, and one that fails costs its own answer alone."""

from __future__ import annotations

from collections.abc import Iterable

from autopsy.diagnose import imported
from autopsy.diagnose.causes import MatchedSignature
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature
from autopsy.facts.model.facts import Facts, Origin

OF_A_MACHINE: frozenset[Where] = frozenset({"guest", "vm-state", "device", "migration"})
OF_EVERY_START = frozenset({"vm-awaits-client"})


Judged = tuple[Signature, Judgement]  # a signature with its answer


def judge(facts: Facts, signatures: Iterable[Signature]) -> tuple[Judged, ...]:
    """Return every signature's answer, in their order."""
    if facts.origin is Origin.CAPTURE and not facts.vm.is_storage_daemon:
        return tuple([(signature, _of_signature(signature, facts)) for signature in signatures])
    return tuple([(signature, _answer(signature, facts)) for signature in signatures])


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
