"""What the report says before anybody scrolls: a headline, its proofs in the evidence's own words, what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autopsy.diagnose.diagnosis import Advice, Claim, Diagnosis, KillEffect, When
from autopsy.facts.cite import Cite
from autopsy.facts.evidence import Evidence

MOST = 90  # characters of a headline that can be said aloud
PROOFS = 3
QUOTED = 150  # characters of a line of evidence
BEFORE = 50  # of them ahead of the words that are cited
ASIDE = re.compile(r" \([^()]*\)")
ADDRESS = re.compile(r" [a-z+]+://[^ ]*[^ :;,]")
WORD = re.compile(r"\w[\w./@-]{3,}\w")
BLOCK = 48  # lines that a cite of a block may be followed by
MOST_CITES = 3
BREAKS = (": ", "; ", ", ")
SHOWN: tuple[tuple[When, str, int], ...] = (
    ("now", "Now", 2),
    ("if-not", "If not", 1),
    ("never", "Never", 1),
    ("later", "Later", 1),
)
KILLS: dict[KillEffect, str] = {
    "helps": "a kill helps",
    "needless": "no kill needed",
    "futile": "a kill is futile",
    "unknown": "not known whether a kill helps",
}


@dataclass(frozen=True, slots=True)
class Proof:
    """A sentence of the chain, and one line of the evidence as it stands there; `cites` lead to it."""

    text: str
    quote: str
    cites: tuple[Cite, ...]


@dataclass(frozen=True, slots=True)
class AdviceGroup:
    """One kind of advice, with its commands."""

    label: str
    commands: tuple[Advice, ...]


def headline(diagnosis: Diagnosis) -> str:
    """Return the headline in words that can be said aloud; the whole of it stands in the line below."""
    words = diagnosis.headline
    for left_out in (ASIDE, ADDRESS):
        if len(words) > MOST:
            words = left_out.sub("", words)
    for mark in BREAKS:
        if len(words) > MOST:
            words = words[:MOST].rpartition(mark)[0] or words
    return words if len(words) <= MOST else f"{words[: MOST - 1].rpartition(' ')[0]}…"


def proofs(bundle: Evidence, diagnosis: Diagnosis) -> tuple[Proof, ...]:
    """Return the first sentences of the chain that a line of the evidence can be quoted for."""
    found = (Proof(claim.text, _quote(bundle, claim), claim.cites) for claim in diagnosis.chain)
    return tuple(proof for proof in found if proof.quote)[:PROOFS]


def doing(diagnosis: Diagnosis) -> tuple[AdviceGroup, ...]:
    """Return what to do, by when; nothing is said of a kind that has no command."""
    kinds = (
        AdviceGroup(label, tuple(each for each in diagnosis.advice if each.when == when)[:most])
        for when, label, most in SHOWN
    )
    return tuple(kind for kind in kinds if kind.commands)


def _quote(bundle: Evidence, claim: Claim) -> str:
    """Return the line that says most of what the claim says, of those that its cites lead to: blocks begin there."""
    said = frozenset(WORD.findall(claim.text))
    best, most = "", -1
    for cite in claim.cites[:MOST_CITES]:
        lines = bundle.read(cite.file).splitlines()[cite.line - 1 : cite.line - 1 + BLOCK] if cite.line > 0 else []
        for number, line in enumerate(lines):
            text = " ".join(line.decode("utf-8", "replace").split())
            if number and not text:
                break  # the block ends
            shared = sorted(said & frozenset(WORD.findall(text)), key=len, reverse=True)
            if sum(map(len, shared)) > most:
                best, most = _around(text, shared[0] if shared else cite.text), sum(map(len, shared))
    return best or next((cite.text for cite in claim.cites if cite.text), "")


def _around(line: str, words: str) -> str:
    """Cut a long line to what stands around some words of it."""
    if len(line) <= QUOTED:
        return line
    begin = max(0, line.find(words) - BEFORE) if words else 0
    end = begin + QUOTED
    return f"{'…' if begin else ''}{line[begin:end]}{'…' if end < len(line) else ''}"
