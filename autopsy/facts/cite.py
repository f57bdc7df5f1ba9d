"""Where a fact comes from: known with its cite, or unknown with what is missing."""

from __future__ import annotations

from typing import Generic, TypeVar

from autopsy.dataclass import dataclass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cite:
    """One place in the bundle. `line` is 1-based, 0 for the file as a whole; `text` is the words found there."""

    file: str
    line: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A value, and where it was read."""

    value: T
    cite: Cite


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that cannot be told: which evidence it would be read from, and why it is not there."""

    evidence: str
    why: str


Fact = Known[T] | Unknown
