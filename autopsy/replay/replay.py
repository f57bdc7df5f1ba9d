"""Replays stored cases: gathers their facts, diagnoses them, and says what has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.reader import Bundle, open_bundle
from autopsy.dataclass import dataclass
from autopsy.diagnose.verdict import diagnose
from autopsy.errors import AutopsyError, DamagedBundle
from autopsy.facts.gather import gather_facts
from autopsy.linux.worker_pool import WORK_SECONDS, work_through
from autopsy.replay.cases import Case, read_expected, write_expected
from autopsy.replay.expected import Change, Expected, SealedAnswer, changes, renewed


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One case as it went.

    `changes` are what is not as expected; `updated` says that expected.json was rewritten so that they are expected
    from now on; `error` is why there is no diagnosis to compare, or nothing to compare it with.
    """

    name: str
    seconds: float
    changes: tuple[Change, ...] = ()
    updated: bool = False
    error: str = ""

    @property
    def passed(self) -> bool:
        """Return whether the case is as it should be."""
        return not self.error and (self.updated or not self.changes)


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells of a case: `expected` is what to write, where that is wanted."""

    changes: tuple[Change, ...] = ()
    error: str = ""
    expected: Expected | None = None


def replay(
    cases: tuple[Case, ...], *, update: bool = False, jobs: int = 1, seconds: float = WORK_SECONDS
) -> Iterator[Replayed]:
    """Yield every case in order. With `update` a case that has a folder of its own is expected as it is now.

    Nothing of a bundle is written anywhere. Whatever a bundle holds, its case ends within `seconds`.
    Concurrency: call it only from a process with one thread.
    """
    early: dict[int, Replayed] = {}
    following = 0
    places = (place for case in cases for place in (case.bundle, case.home) if place is not None)
    for done in work_through(
        len(cases),
        lambda index: msgspec.json.encode(_judge(cases[index], update=update)),
        jobs=jobs,
        seconds=seconds,
        readable=tuple(dict.fromkeys(places)),
    ):
        case = cases[done.index]
        answer = msgspec.json.decode(done.answer, type=CaseResult) if done.answer else CaseResult(error=done.error)
        updated = update and answer.expected is not None and case.home is not None
        if updated and case.home is not None and answer.expected is not None:
            write_expected(case.home, answer.expected)
        early[done.index] = Replayed(
            name=case.name, seconds=done.seconds, changes=answer.changes, updated=updated, error=answer.error
        )
        while following in early:
            yield early.pop(following)
            following += 1


def _judge(case: Case, *, update: bool) -> CaseResult:
    try:
        bundle = open_bundle(case.bundle)
        expected = _expected(case, bundle, update=update)
        diagnosis = diagnose(gather_facts(bundle))
    except AutopsyError as error:
        return CaseResult(error=f"{error}; {error.remedy}")
    changed = changes(expected, diagnosis) if expected is not None else ()
    if not update or case.home is None or not (changed or expected is None):
        return CaseResult(changes=changed)
    old = expected if isinstance(expected, Expected) else None
    return CaseResult(changes=changed, expected=renewed(old, diagnosis))


def _expected(case: Case, bundle: Bundle, *, update: bool) -> Expected | SealedAnswer | None:
    """Return what the diagnosis is compared with; None only where it is to be written for the first time.

    Raises:
        DamagedBundle: there is nothing to compare with.
    """
    if case.home is None:
        return _sealed(case, bundle)
    try:
        expected = read_expected(case.home)
    except DamagedBundle:
        if not update:
            raise
        return None
    if expected is None and not update:
        raise DamagedBundle(case.name, "has no expected.json", remedy="`--update` writes what is diagnosed now")
    return expected


def _sealed(case: Case, bundle: Bundle) -> SealedAnswer:
    try:
        return msgspec.json.decode(bundle.read(layout.DIAGNOSIS), type=SealedAnswer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedBundle(
            case.name,
            f"holds no diagnosis to compare with ({error})",
            remedy="put it into a folder of its own with provenance.md, then `--update` writes expected.json",
        ) from error


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
