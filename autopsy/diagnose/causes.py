"""Which of the signatures that are seen is the cause, and which only wait because of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Where
from autopsy.diagnose.signature import Match, Signature, spoken_of
from autopsy.diagnose.waits.leads import NOWHERE, Leads, Led

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
    seen = [finding for finding in seen if not is_pointer(finding.match)]
    is_ill = any(finding.where != "none" and not finding.match.harmless for finding in seen)
    seen = [finding for finding in seen if finding.where != "none" or not is_ill]
    led = {finding.place: graph.of(spoken_of(finding.match)) for finding in seen}
    causes = {finding.place: [other for other in seen if _holds(other, finding, led)] for finding in seen}
    able = [finding for finding in seen if not finding.match.effect and not finding.match.harmless]
    able = [finding for finding in able if not graph.only_waits(led[finding.place])]
    roots = [finding for finding in able if not _is_behind(finding, causes)]
    # Two that wait for finding other are one deadlock: the more particular one, listed first, speaks for both.
    primary = min(roots or able, key=_importance, default=None)
    others = tuple(
        (finding, next(iter(sorted(causes[finding.place], key=_importance)), None))
        for finding in seen
        if finding is not primary
    )
    return CauseOrder(primary, tuple(sorted(others, key=lambda pair: _importance(pair[0]))))


def independent(ordered: CauseOrder) -> tuple[MatchedSignature, ...]:
    """Return the primary cause, and finding other one that nothing seen holds up: they would stay if it went away."""
    if ordered.primary is None:
        return ()
    others = (
        finding
        for finding, holder in ordered.others
        if holder is None
        and not (finding.match.effect or finding.match.harmless or finding.match.beside or finding.where == "none")
    )
    return (ordered.primary, *others)


def is_pointer(match: Match) -> bool:
    """Tell whether a match is only worth a remark: it holds nothing up, and is no more than possible."""
    return match.beside and match.confidence == "possible"


def _is_behind(finding: MatchedSignature, causes: dict[int, list[MatchedSignature]]) -> bool:
    """Tell whether something holds this one that does not in turn wait for it."""
    return any(finding not in causes[other.place] for other in causes[finding.place])


def _holds(holder: MatchedSignature, waiter: MatchedSignature, led: Mapping[int, Led]) -> bool:
    if holder is waiter:
        return False
    if led[waiter.place].is_held(led[holder.place]):
        return True
    if holder.match.stops_all:
        return waiter.where != "process"
    if holder.match.starves:
        return waiter.match.confidence != "proven" and RANK.get(waiter.where) is None
    return waiter.match.implied and holder.where not in RANK and not (holder.match.effect or holder.match.harmless)


def _importance(finding: MatchedSignature) -> tuple[int, bool, bool, int, int, int]:
    rank = RANK.get(finding.where, 1)
    sure = finding.match.confidence
    return (
        max(rank, 2 if finding.match.beside else 0),  # what keeps no request from its end comes after all that does
        sure == "possible",
        finding.match.by_design,
        SURE[sure],
        -finding.match.weight,
        finding.place,
    )
