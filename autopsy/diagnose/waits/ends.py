"""Where waiting ends: the sinks that are reached from what must not wait, and the rings that never end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.waits.wait import Wait
from autopsy.facts.subjects import Subject

MOST_ENDS = 256  # of each kind: a VM has a few, and the way back from each costs as much as the whole graph


@dataclass(frozen=True, slots=True)
class Ends:
    """The sinks with everybody who waits for each in the end, and the rings with theirs; the first of them only."""

    sinks: Mapping[Subject, frozenset[Subject]]
    rings: Mapping[frozenset[Subject], frozenset[Subject]]


@dataclass(frozen=True, slots=True)
class Numbered:
    """The waits by numbers: to tell two subjects apart costs more than all that is done with them here.

    `onward` and `back` hold for each subject whom it waits for, and who waits for it.
    """

    subjects: Sequence[Subject]
    number: Mapping[Subject, int]
    onward: Sequence[Mapping[int, None]]
    back: Sequence[Sequence[int]]

    def behind(self, these: Iterable[int]) -> set[int]:
        """Return them, and all who wait for them over however many others."""
        reached = set(these)
        left = list(reached)
        while left:
            for waiter in self.back[left.pop()]:
                if waiter not in reached:
                    reached.add(waiter)
                    left.append(waiter)
        return reached


def numbered(waits: Iterable[Wait]) -> Numbered:
    """Give each subject a number, in the order in which they come."""
    number: dict[Subject, int] = {}
    onward: list[dict[int, None]] = []
    back: list[list[int]] = []
    for wait in waits:
        places = []
        for subject in (wait.waiter, wait.on):
            place = number.setdefault(subject, len(onward))
            if place == len(onward):
                onward.append({})
                back.append([])
            places.append(place)
        waiter, on = places
        if on not in onward[waiter]:
            onward[waiter][on] = None
            back[on].append(waiter)
    return Numbered(tuple(number), number, onward, back)


def ends(waits: Iterable[Wait], roots: Iterable[Subject]) -> Ends:
    """Follow every wait from the roots. No recursion: a ring may be as long as a hostile bundle makes it."""
    return ends_of(numbered(waits), roots)


def ends_of(graph: Numbered, roots: Iterable[Subject]) -> Ends:
    """Follow every wait of a graph from the roots."""
    named = graph.subjects
    wanted = dict.fromkeys(place for root in roots if (place := graph.number.get(root)) is not None)
    reached = _reached(graph.onward, wanted)
    rings = _rings(graph, reached)
    sinks = [place for place in reached if not graph.onward[place]]

    def waiting(these: Iterable[int]) -> frozenset[Subject]:
        return frozenset(named[place] for place in graph.behind(these) & wanted.keys())

    return Ends(
        {named[sink]: waiting((sink,)) for sink in sinks[:MOST_ENDS]},
        {frozenset(named[place] for place in ring): waiting(ring) for ring in rings[:MOST_ENDS]},
    )


def rings_of(graph: Numbered) -> list[frozenset[Subject]]:
    """Return every ring of a graph, one that nobody is led to as well; the first of them only."""
    rings = _rings(graph, range(len(graph.subjects)))[:MOST_ENDS]
    return [frozenset(graph.subjects[place] for place in ring) for ring in rings]


def _rings(graph: Numbered, reached: Iterable[int]) -> list[frozenset[int]]:
    return [ring for ring in _components(graph.onward, _in_rings(graph, reached)) if _is_ring(graph.onward, ring)]


def _reached(onward: Sequence[Mapping[int, None]], roots: Iterable[int]) -> dict[int, None]:
    reached = dict.fromkeys(root for root in roots if onward[root])
    left = list(reached)
    while left:
        for place in onward[left.pop()]:
            if place not in reached:
                reached[place] = None
                left.append(place)
    return reached


def _is_ring(onward: Sequence[Mapping[int, None]], ring: frozenset[int]) -> bool:
    return len(ring) > 1 or all(place in onward[place] for place in ring)


def _in_rings(graph: Numbered, reached: Iterable[int]) -> list[int]:
    """Leave out those whose every way ends: most graphs have no ring, and to look for one costs more than this."""
    left = {place: len(graph.onward[place]) for place in reached}
    ended = [place for place, ways in left.items() if not ways]
    while ended:
        for waiter in graph.back[ended.pop()]:
            if waiter in left:
                left[waiter] -= 1
                if not left[waiter]:
                    ended.append(waiter)
    return [place for place, ways in left.items() if ways]


def _components(onward: Sequence[Mapping[int, None]], reached: Iterable[int]) -> list[frozenset[int]]:
    """Return the strongly connected components (Tarjan), with a stack of our own."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: dict[int, None] = {}
    components = []
    for root in reached:
        if root in index:
            continue
        work = [(root, iter(onward[root]))]
        index[root] = low[root] = len(index)
        path[root] = None
        while work:
            subject, below = work[-1]
            step = next(below, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[subject])
                if low[subject] == index[subject]:
                    members = set()
                    while subject not in members:
                        members.add(path.popitem()[0])
                    components.append(frozenset(members))
            elif step not in index:
                index[step] = low[step] = len(index)
                path[step] = None
                work.append((step, iter(onward[step])))
            elif step in path:
                low[subject] = min(low[subject], index[step])
    return components
