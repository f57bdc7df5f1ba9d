"""Chooses the few sentences that prove the verdict, each of another kind and with one line of the evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim, Diagnosis
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence
from autopsy.report.proof.quotes import quote

PROOFS = 3
LOOKED_AT = 12  # kinds of sentences; what leads the chain is worth most
NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True, slots=True)
class Proof:
    """A sentence of the chain, and one line of the evidence as it stands there; `cites` lead to it."""

    text: str
    quote: str
    cites: tuple[Cite, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    number: int
    proof: Proof
    file: str


def proofs(bundle: Evidence, diagnosis: Diagnosis) -> tuple[Proof, ...]:
    """Return the first sentences of the chain that a line can be quoted for, from different files if there are such."""
    candidates = []
    for number, claims in enumerate(alike(diagnosis.chain)[:LOOKED_AT]):
        first = claims[0]
        quoted = quote(bundle, first)
        if quoted.text:
            proof = Proof(with_the_others(claims), quoted.text, first.cites)
            candidates.append(_Candidate(number, proof, quoted.file))
    chosen: list[_Candidate] = []
    _take(chosen, (other for other in candidates if other.file not in {taken.file for taken in chosen}))
    _take(chosen, (other for other in candidates if other.proof.quote not in {taken.proof.quote for taken in chosen}))
    _take(chosen, candidates)
    return tuple(candidate.proof for candidate in sorted(chosen, key=lambda candidate: candidate.number))


def _take(chosen: list[_Candidate], more: Iterable[_Candidate]) -> None:
    """Add to the chosen ones, while there is room, those that are not among them."""
    for candidate in more:
        if len(chosen) < PROOFS and candidate not in chosen:
            chosen.append(candidate)


def alike(chain: Iterable[Claim]) -> list[list[Claim]]:
    """Gather sentences that differ in their numbers alone, in the order in which each kind comes first."""
    kinds: dict[str, list[Claim]] = {}
    for claim in chain:
        kinds.setdefault(NUMBER.sub("0", claim.text), []).append(claim)
    return list(kinds.values())


def with_the_others(claims: list[Claim]) -> str:
    """Return the first of sentences that are alike, with how many more there are."""
    more = len({claim.text for claim in claims}) - 1
    text = claims[0].text
    return f"{text.removesuffix('.')}; likewise {more} more." if more else text
