"""Which of the signatures that are seen is the cause, and which only wait because of it."""

from __future__ import annotations

from collections.abc import Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.signature import Match, Signature, spoken_of
from autopsy.diagnose.waits.leads import NOWHERE, Leads

# Among causes that do not wait for one another: whatever stops everything first, what pauses on purpose late.
RANK: dict[Where, int] = {"process": 0, "vm-state": 2, "guest": 3, "none": 4, "unknown": 5}
SURE = {"proven": 0, "likely": 1, "consistent": 1, "possible": 2}


@dataclass(frozen=True, slots=True)
class MatchedSignature:
    """A signature that matched; `place` is its place in the list of all."""

    signature: Signature
    match: Match
    place: int

    @property
    def where(self) -> Where:
        """Return where it is, which a match may know better than its signature."""
        return self.match.where or self.signature.where


@dataclass(frozen=True, slots=True)
class CauseOrder:
    """The primary cause, if anything seen can be one, and for each of the others what holds it (or None)."""

    primary: MatchedSignature | None
    others: tuple[tuple[MatchedSignature, MatchedSignature | None], ...]


def order(seen: Sequence[MatchedSignature], graph: Leads = NOWHERE) -> CauseOrder:
    """Find the cause: a match that waits for nothing that another one holds, by the graph of waits."""
    # A pointer is no finding, and a VM with a finding is not healthy.
    seen = [each for each in seen if not is_pointer(each)]
    found = any(each.where != "none" and not each.match.harmless for each in seen)
    seen = [each for each in seen if each.where != "none" or not found]
    causes = {each.place: [other for other in seen if _holds(other, each, graph)] for each in seen}
    able = [each for each in seen if not each.match.effect and not each.match.harmless]
    able = [each for each in able if not graph.only_waits(spoken_of(each.match))]
    roots = [each for each in able if not _is_behind(each, causes)]
    # Two that wait for each other are one deadlock: the more particular one, listed first, speaks for both.
    primary = min(roots or able, key=_importance, default=None)
    others = tuple(
        (each, next(iter(sorted(causes[each.place], key=_importance)), None)) for each in seen if each is not primary
    )
    return CauseOrder(primary, tuple(sorted(others, key=lambda pair: _importance(pair[0]))))


def independent(found: CauseOrder) -> tuple[MatchedSignature, ...]:
    """Return the primary cause, and each other one that nothing seen holds up: they would stay if it went away."""
    if found.primary is None:
        return ()
    others = (
        each
        for each, holder in found.others
        if holder is None
        and not (each.match.effect or each.match.harmless or each.match.beside or each.where == "none")
    )
    return (found.primary, *others)


def is_pointer(each: MatchedSignature) -> bool:
    """Tell whether a match is only worth a remark: it holds nothing up, and is no more than possible."""
    return each.match.beside and each.match.confidence == "possible"


def _is_behind(each: MatchedSignature, causes: dict[int, list[MatchedSignature]]) -> bool:
    """Tell whether something holds this one that does not in turn wait for it."""
    return any(each not in causes[other.place] for other in causes[each.place])


def _holds(holder: MatchedSignature, waiter: MatchedSignature, graph: Leads) -> bool:
    if holder is waiter:
        return False
    if graph.is_held(spoken_of(waiter.match), spoken_of(holder.match)):
        return True
    if holder.match.stops_all:
        return waiter.where != "process"
    return waiter.match.implied and holder.where not in RANK and not (holder.match.effect or holder.match.harmless)


def _importance(each: MatchedSignature) -> tuple[int, bool, bool, int, int, int]:
    rank = RANK.get(each.where, 1)
    sure = each.match.confidence
    return (
        max(rank, 2 if each.match.beside else 0),  # what keeps no request from its end comes after all that does
        sure == "possible",
        each.match.by_design,
        SURE[sure],
        -each.match.weight,
        each.place,
    )
