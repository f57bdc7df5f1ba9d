"""Whether what one finding speaks of waits, over however many others, for the end that another one speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autopsy.dataclass import dataclass
from autopsy.diagnose.waits.graph import Graph
from autopsy.diagnose.waits.wait import Certainty
from autopsy.facts.subjects import Subject, Thread


@dataclass(frozen=True, slots=True)
class Led:
    """The ends that the waiting of several subjects leads to; `own` are those among these that are ends themselves.

    Of such an end nothing is known that it would wait for, or it is in a ring.
    """

    own: frozenset[Subject]
    ends: frozenset[Subject]

    def is_held(self, holder: Led) -> bool:
        """Tell whether this is no end itself, and leads to one of the holder's."""
        return not self.own and not self.ends.isdisjoint(holder.own)


@dataclass(frozen=True, slots=True)
class Leads:
    """For each subject of the graph, the ends that its waiting leads to; an end leads to itself.

    `implied` says that frames alone told some of it: what else there is, nobody saw.
    """

    ends: Mapping[Subject, frozenset[Subject]]
    implied: bool = False

    def of(self, objects: Iterable[Subject]) -> Led:
        """Return where the waiting of what a finding speaks of ends."""
        own: set[Subject] = set()
        ends: set[Subject] = set()
        for subject in objects:
            if reached := self.ends.get(subject):
                ends |= reached
                if subject in reached:
                    own.add(subject)
        return Led(frozenset(own), frozenset(ends))

    def only_waits(self, led: Led) -> bool:
        """Tell whether all that a finding speaks of waits for others: it is no cause, whoever names what it waits for.

        A thread at the end of a wait may work: nothing says that it never ends.
        """
        return not (self.implied or led.own) and any(not isinstance(end, Thread) for end in led.ends)


NOWHERE = Leads({})


def leads(graph: Graph) -> Leads:
    """Follow the waits back from each end. The work is bounded, for the number of ends is."""
    by_number = graph.numbered
    ends_reached: dict[int, set[Subject]] = {}
    for end in (*(frozenset({sink}) for sink in graph.ends.sinks), *graph.ends.rings):
        for waiter in by_number.behind(by_number.number[subject] for subject in end):
            ends_reached.setdefault(waiter, set()).update(end)
    implied = any(wait.certainty is Certainty.CONSISTENT for wait in graph.waits)
    return Leads({by_number.subjects[waiter]: frozenset(led) for waiter, led in ends_reached.items()}, implied)


@dataclass(frozen=True, slots=True)
class Nameless:
    """An end of the waiting, how many that must not wait do so for it, and whether they did at both looks."""

    end: Subject
    waiters: int
    through: bool


def nameless(graph: Graph) -> tuple[Nameless, ...]:
    """Return the ends, those that most wait for first; a thread that only works, or that nobody waits for, is none."""
    ends = graph.ends.sinks
    seen = {wait.waiter for wait in graph.waits if wait.certainty is Certainty.SEEN}
    sinks = [Nameless(end, len(waiting - {end}), not seen.isdisjoint(waiting)) for end, waiting in ends.items()]
    return tuple(sorted((sink for sink in sinks if sink.waiters), key=lambda sink: -sink.waiters))
