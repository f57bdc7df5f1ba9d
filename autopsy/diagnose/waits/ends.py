"""Where waiting ends: the sinks that are reached from what must not wait, and the rings that never end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autopsy.dataclass import dataclass
from autopsy.diagnose.waits.wait import Wait
from autopsy.facts.subjects import Subject

MOST_ENDS = 256  # of each kind: a VM has a few, and the way back from each costs as much as the whole graph


@dataclass(frozen=True, slots=True)
class Ends:
    """The sinks with everybody who waits for each in the end, and the rings with theirs; the first of them only."""

    sinks: Mapping[Subject, frozenset[Subject]]
    rings: Mapping[frozenset[Subject], frozenset[Subject]]


def ends(waits: Iterable[Wait], roots: Iterable[Subject]) -> Ends:
    """Follow every wait from the roots. No recursion: a ring may be as long as a hostile bundle makes it."""
    onward: dict[Subject, dict[Subject, None]] = {}
    for wait in waits:
        onward.setdefault(wait.waiter, {})[wait.on] = None
    wanted = tuple(dict.fromkeys(roots))
    reached = _reached(onward, wanted)
    rings = [each for each in _components(onward, reached) if len(each) > 1 or _waits_for_itself(onward, each)]
    sinks = [each for each in reached if each not in onward]
    back = _reversed(onward, reached)
    return Ends(
        {sink: _waiting(back, (sink,), wanted) for sink in sinks[:MOST_ENDS]},
        {ring: _waiting(back, ring, wanted) for ring in rings[:MOST_ENDS]},
    )


def _reached(onward: Mapping[Subject, Mapping[Subject, None]], roots: Iterable[Subject]) -> dict[Subject, None]:
    found = dict.fromkeys(root for root in roots if root in onward)
    left = list(found)
    while left:
        for each in onward.get(left.pop(), ()):
            if each not in found:
                found[each] = None
                left.append(each)
    return found


def _reversed(
    onward: Mapping[Subject, Mapping[Subject, None]], reached: Mapping[Subject, None]
) -> dict[Subject, list[Subject]]:
    back: dict[Subject, list[Subject]] = {}
    for waiter in reached:
        for on in onward.get(waiter, ()):
            back.setdefault(on, []).append(waiter)
    return back


def _waiting(
    back: Mapping[Subject, list[Subject]], of: Iterable[Subject], roots: tuple[Subject, ...]
) -> frozenset[Subject]:
    found = set(of)
    left = list(found)
    while left:
        for each in back.get(left.pop(), ()):
            if each not in found:
                found.add(each)
                left.append(each)
    return frozenset(found.intersection(roots))


def _waits_for_itself(onward: Mapping[Subject, Mapping[Subject, None]], ring: frozenset[Subject]) -> bool:
    return all(each in onward.get(each, ()) for each in ring)


def _components(
    onward: Mapping[Subject, Mapping[Subject, None]], reached: Mapping[Subject, None]
) -> list[frozenset[Subject]]:
    """Return the strongly connected components (Tarjan), with a stack of our own."""
    index: dict[Subject, int] = {}
    low: dict[Subject, int] = {}
    path: dict[Subject, None] = {}
    found = []
    for root in reached:
        if root in index:
            continue
        work = [(root, iter(onward.get(root, ())))]
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
                    found.append(frozenset(members))
            elif step not in index:
                index[step] = low[step] = len(index)
                path[step] = None
                work.append((step, iter(onward.get(step, ()))))
            elif step in path:
                low[subject] = min(low[subject], index[step])
    return found
