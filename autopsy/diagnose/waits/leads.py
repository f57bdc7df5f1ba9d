"""Whether what one finding speaks of waits, over however many others, for the end that another one speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autopsy.dataclass import dataclass
from autopsy.diagnose.waits.graph import Graph
from autopsy.diagnose.waits.wait import Certainty
from autopsy.facts.subjects import Subject, Thread


@dataclass(frozen=True, slots=True)
class Leads:
    """For each subject of the graph, the ends that its waiting leads to; an end leads to itself.

    `implied` says that frames alone told some of it: what else there is, nobody saw.
    """

    ends: Mapping[Subject, frozenset[Subject]]
    implied: bool = False

    def own(self, objects: Iterable[Subject]) -> frozenset[Subject]:
        """Return those that are ends themselves: nothing is known that they would wait for, or they are in a ring."""
        return frozenset(subject for subject in objects if subject in self.ends.get(subject, ()))

    def is_held(self, waiter: Iterable[Subject], holder: Iterable[Subject]) -> bool:
        """Tell whether the waiter is no end itself, and leads to one of the holder's."""
        objects = tuple(waiter)
        led = frozenset().union(*(self.ends.get(subject, frozenset()) for subject in objects))
        return not self.own(objects) and bool(led & self.own(holder))

    def only_waits(self, waiter: Iterable[Subject]) -> bool:
        """Tell whether all that it speaks of waits for others: it is no cause, whoever names what it waits for.

        A thread at the end of a wait may work: nothing says that it never ends.
        """
        objects = tuple(waiter)
        led = frozenset().union(*(self.ends.get(subject, frozenset()) for subject in objects))
        return not (self.implied or self.own(objects)) and any(not isinstance(end, Thread) for end in led)


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
