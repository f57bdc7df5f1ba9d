"""One edge of the graph of waits: who cannot go on before whom, how, and how surely it was seen."""

from __future__ import annotations

from enum import Enum

from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite
from autopsy.facts.subjects import Subject

MOST_WAITS = 50_000  # of each kind of evidence: what is more is no VM's, but a hostile bundle's


class How(Enum):
    """The kind of a wait; the value is the words between the two."""

    __hash__ = object.__hash__  # an enum's own hashes the name anew each time

    HELD_BY = "held by"
    WAITS_FOR_LOCK = "waits for"
    POLLS_FOR = "polls for"
    PARKED_AT = "parked"
    FOR = "of"
    BEHIND = "stands behind"
    SLEEPS_IN = "sleeps in"
    ON = "on"
    SERVED_BY = "is served by"
    CLIENT_OF = "is itself a client of"
    OTHER_END = "waits for the other end of its connection:"
    STACKED_ON = "lies on"
    STOPPED_BY = "is stopped by"
    JOINS = "waits for the end of"
    TAKEN_UP_BY = "is to be taken up by"
    LIMITED_BY = "is limited by"
    SIGNALLED_BY = "waits for a word from"


class Certainty(Enum):
    """How surely an edge was seen, the surest first."""

    __hash__ = object.__hash__

    SEEN = "at both looks"
    ONCE = "at one look"
    CONSISTENT = "by frames alone"


@dataclass(frozen=True, slots=True)
class Wait:
    """`waiter` cannot go on before `on` does."""

    waiter: Subject
    on: Subject
    how: How
    certainty: Certainty
    cites: tuple[Cite, ...] = ()
