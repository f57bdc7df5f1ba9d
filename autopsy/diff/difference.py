"""What `autopsy diff --json` prints: the differences of two captures, A and B."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from autopsy.facts.cite import Fact, Known


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two captures."""

    bundle: str
    name: str
    pid: int
    manager: str
    utc: str
    autopsy: str


class DifferingReading(msgspec.Struct, frozen=True, kw_only=True):
    """Something that reads differently on the two sides; what could not be told says why."""

    what: str
    a: str
    b: str


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """How many there are on either side."""

    what: str
    a: int
    b: int


class StackCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many threads have the same stack, innermost function first, and what these threads are for."""

    functions: tuple[str, ...]
    roles: tuple[str, ...]
    a: int
    b: int


class ParkCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests are parked at one point.

    `stuck_in_both` are the addresses of coroutines that are parked with the same frames on both sides: only where both
    are the same process.
    """

    park: str
    words: str
    a: int
    b: int
    stuck_in_both: tuple[str, ...] = ()


class DiskChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One disk. `completed` is how many requests ended from A to B, only where both are the same process."""

    name: str
    completed: int | msgspec.UnsetType = msgspec.UNSET
    in_flight_a: int | msgspec.UnsetType = msgspec.UNSET
    in_flight_b: int | msgspec.UnsetType = msgspec.UNSET
    told: tuple[DifferingReading, ...] = ()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs; requests and disks are told where they do not, too, for there that is the news.

    `seconds` lie between A and B, on the host's own clock where it is one host that did not start anew meanwhile.
    """

    a: Side
    b: Side
    same_process: bool
    seconds: float
    verdict: tuple[DifferingReading, ...]
    target: tuple[DifferingReading, ...]
    state: tuple[DifferingReading, ...]
    threads: tuple[Count, ...]
    moved: tuple[DifferingReading, ...]
    stacks: tuple[StackCount, ...]
    requests: tuple[ParkCount, ...]
    disks: tuple[DiskChange, ...]
    throttle: tuple[DifferingReading, ...]
    jobs: tuple[DifferingReading, ...]
    host: tuple[DifferingReading, ...]

    @property
    def differs(self) -> bool:
        """Tell whether anything does; a disk that went on completing requests does not make a difference."""
        parts = (self.verdict, self.target, self.state, self.threads, self.moved, self.stacks, self.throttle, self.jobs)
        return any((*parts, self.host)) or any(row.a != row.b for row in self.requests)


T = TypeVar("T")


def words(fact: Fact[T], say: Callable[[T], str]) -> str:
    """Return a fact in words, or why it is not known."""
    return say(fact.value) if isinstance(fact, Known) else "not known"


def known(fact: Fact[T], otherwise: T) -> T:
    """Return a fact's value; one that is not known counts as `otherwise`."""
    return fact.value if isinstance(fact, Known) else otherwise


def same_or_told(what: str, a: str, b: str) -> Iterator[DifferingReading]:
    """Yield the difference, if there is one."""
    if a != b:
        yield DifferingReading(what=what, a=a or "nothing", b=b or "nothing")


def compared(rows: Iterable[tuple[str, str, str]]) -> Iterator[DifferingReading]:
    """Yield the rows whose two sides differ."""
    for what, a, b in rows:
        yield from same_or_told(what, a, b)
