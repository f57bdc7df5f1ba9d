"""Puts counts and missing facts into words."""

from __future__ import annotations

from autopsy.facts.cite import Fact, Known, Unknown


def count(number: int, one: str, many: str = "") -> str:
    """Say a number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def known(fact: Fact[str]) -> str:
    """Return a text fact, empty where it is unknown."""
    return fact.value if isinstance(fact, Known) else ""


def missing(unknown: Unknown) -> str:
    """Say which evidence is missing and why."""
    return f"{unknown.evidence} ({unknown.why})"


def sentence(words: str) -> str:
    """Return words with a capital letter at their beginning."""
    return words[:1].upper() + words[1:]
