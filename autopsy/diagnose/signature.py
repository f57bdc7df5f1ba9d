"""The three answers that a signature can give, and what a signature is."""

from __future__ import annotations

from collections.abc import Callable

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim, Confidence, Where
from autopsy.facts.cite import Cite
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The signature is seen. `effect` says that it is only ever the consequence of something else.

    `beside` says that it is true but keeps no request from its end: any other cause comes before it.
    `by_design` says that it ends by itself, as it was set up to: what does not comes before it.
    `harmless` says that it is true of healthy VMs, too: it is never the cause, and is told beside one.
    Whose objects lead to another match's in the graph of waits is secondary to it; `stands` are the requests, locks and
    places that it speaks of there and does not name.
    `stops_all` says that nothing in the process runs because of it, whatever else it waits for.
    `starves` says that QEMU's threads hardly run because of it: that they did nothing proves nothing then.
    `implied` says that frames alone tell it: it is one with whatever else was found.
    `weight` counts the requests or threads that it explains.
    """

    headline: str
    objects: tuple[Subject, ...]
    confidence: Confidence
    claims: tuple[Claim, ...]
    stands: tuple[Subject, ...] = ()
    effect: bool = False
    beside: bool = False
    by_design: bool = False
    harmless: bool = False
    stops_all: bool = False
    starves: bool = False
    implied: bool = False
    weight: int = 0
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class RuledOut:
    """The signature is not it, and this is what speaks against it."""

    why: str
    cites: tuple[Cite, ...] = ()


@dataclass(frozen=True, slots=True)
class CannotTell:
    """It could be or not be: `missing` is the evidence that would decide."""

    missing: str


Judgement = Match | RuledOut | CannotTell


@dataclass(frozen=True, slots=True)
class Signature:
    """One class of wedge. `id` names its runbook too; `title` is a clause that can follow "not:"."""

    id: str
    where: Where
    title: str
    judge: Callable[[Facts], Judgement]


def spoken_of(match: Match) -> tuple[Subject, ...]:
    """Return what a match speaks of in the graph of waits."""
    return (*match.objects, *match.stands)


def claim(text: str, *cites: Cite) -> Claim:
    """Return a sentence with its cites, each once."""
    return Claim(text=text, cites=tuple(dict.fromkeys(cites)))
