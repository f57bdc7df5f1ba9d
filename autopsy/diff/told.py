"""Puts a fact of either side into words and keeps only what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from autopsy.diff.difference import Told
from autopsy.facts.cite import Fact, Known

T = TypeVar("T")


def words(fact: Fact[T], say: Callable[[T], str]) -> str:
    """Return a fact in words, or why it is not known."""
    return say(fact.value) if isinstance(fact, Known) else "not known"


def known(fact: Fact[T], otherwise: T) -> T:
    """Return a fact's value; one that is not known counts as `otherwise`."""
    return fact.value if isinstance(fact, Known) else otherwise


def same_or_told(what: str, a: str, b: str) -> Iterator[Told]:
    """Yield the difference, if there is one."""
    if a != b:
        yield Told(what=what, a=a or "nothing", b=b or "nothing")


def compared(rows: Iterable[tuple[str, str, str]]) -> Iterator[Told]:
    """Yield the rows whose two sides differ."""
    for what, a, b in rows:
        yield from same_or_told(what, a, b)
