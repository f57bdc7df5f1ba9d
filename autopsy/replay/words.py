"""What a person reads of replayed cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autopsy.replay.replay import Replayed

WIDTH = 10  # of the longest name of what can change, with room


def lines(case: Replayed) -> Iterator[str]:
    """Yield one line for a case, and one more for everything about it that has changed: old → new."""
    if case.error:
        yield f"FAILED   {case.name}: {case.error}"
        return
    if not case.changes:
        yield f"{'written' if case.updated else 'passed':<8} {case.name}"
        return
    yield f"{'updated' if case.updated else 'CHANGED':<8} {case.name}"
    for change in case.changes:
        yield f"           {change.what:<{WIDTH}} {change.old} → {change.new}"


def summary(replayed: Iterable[Replayed]) -> str:
    """Return `N passed, N failed`."""
    cases = tuple(replayed)
    passed = sum(case.passed for case in cases)
    return f"{passed} passed, {len(cases) - passed} failed"
