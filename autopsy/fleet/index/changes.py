"""What one analyzer says otherwise than another of the same bundles, grouped, with the smallest examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from autopsy.errors import UsageError
from autopsy.fleet.index.query import ask

EXAMPLES = 3

_BOTH = """
WITH old AS (SELECT * FROM diagnoses WHERE analyzer = $old), new AS (SELECT * FROM diagnoses WHERE analyzer = $new),
pairs AS (
  SELECT old.bundle, old.size, old.stamp,
    {"where": old."where", signature: old.signature, confidence: old.confidence, error: old.error} AS o,
    {"where": new."where", signature: new.signature, confidence: new.confidence, error: new.error} AS n
  FROM old JOIN new ON coalesce(nullif(old.bundle, ''), old.stamp) = coalesce(nullif(new.bundle, ''), new.stamp)
)
"""
_GROUPS = f"""{_BOTH}
SELECT o, n, count(*) AS bundles, list(bundle ORDER BY size, bundle)[1:{EXAMPLES}] AS examples
FROM pairs WHERE o <> n GROUP BY o, n ORDER BY bundles DESC, min(size), o, n
"""  # noqa: S608 - words of ours
_COUNTS = f"""{_BOTH}
SELECT (SELECT count(*) FROM pairs WHERE o = n) AS same, (SELECT count(*) FROM pairs WHERE o <> n) AS changed,
  (SELECT count(*) FROM old) - (SELECT count(*) FROM pairs) AS only_old,
  (SELECT count(*) FROM new) - (SELECT count(*) FROM pairs) AS only_new
"""  # noqa: S608 - likewise
_ANALYZERS = "SELECT analyzer, count(*) FROM diagnoses GROUP BY 1 ORDER BY 1"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What an analyzer said of a bundle; an `error` where it said nothing."""

    where: str
    signature: str
    confidence: str
    error: str = ""

    @property
    def words(self) -> str:
        """Return it in a line."""
        return (self.error and f"error: {self.error}") or f"{self.where} {self.signature} ({self.confidence})"


class ChangedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Bundles of which the same was said before, and the same now; `examples` are the smallest of them."""

    old: Said
    new: Said
    bundles: int
    examples: tuple[str, ...]


class FleetDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How two analyzers differ on all bundles that both have judged."""

    old: str
    new: str
    same: int
    changed: int
    only_old: int
    only_new: int
    groups: tuple[ChangedGroup, ...]


def differences(files: Sequence[Path], old: str, new: str) -> FleetDiff:
    """Compare two analyzers.

    Raises:
        UsageError: the index has no rows of one of them.
    """
    known = dict(ask(files, _ANALYZERS).rows)
    for name in (old, new):
        if name not in known:
            there = ", ".join(f"{analyzer} ({count})" for analyzer, count in known.items())
            raise UsageError(name, "has judged nothing in this index", remedy=f"it has rows of {there}")
    named = {"old": old, "new": new}
    ((same, changed, only_old, only_new),) = ask(files, _COUNTS, named).rows
    groups = tuple(
        ChangedGroup(
            old=msgspec.convert(before, Said), new=msgspec.convert(after, Said), bundles=count, examples=tuple(examples)
        )
        for before, after, count, examples in ask(files, _GROUPS, named).rows
    )
    return FleetDiff(old=old, new=new, same=same, changed=changed, only_old=only_old, only_new=only_new, groups=groups)
