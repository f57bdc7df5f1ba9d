"""What commands on stored bundles print with `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from autopsy.cli.json_output import VerdictAnswer

if TYPE_CHECKING:
    from autopsy.bundle.seal import Sealed
    from autopsy.replay.replay import Replayed


class MadeBundleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was made: `seal --json`, and what all the others begin with."""

    bundle: str
    sha256: str
    size: int


class ExaminedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `examine --json` prints."""

    bundle: str
    sha256: str
    size: int
    note: str
    verdict: VerdictAnswer


class RedactedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `redact --json` prints; `same` says that the copy's diagnosis is the original's."""

    bundle: str
    sha256: str
    size: int
    map: str
    same: bool


class VerifiedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify --json` prints; `why` says what is wrong with a bundle that is not `whole`."""

    bundle: str
    whole: bool
    files: int
    sha256: str
    signed_by: str
    why: str


class ChangeAnswer(msgspec.Struct, frozen=True):
    """What is not as expected of a case."""

    what: str
    old: str
    new: str


class CaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One case of `replay --json`."""

    name: str
    passed: bool
    updated: bool
    seconds: float
    changes: tuple[ChangeAnswer, ...]
    error: str


class ReplayAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `replay --json` prints."""

    passed: bool
    cases: tuple[CaseAnswer, ...]


def sealed_answer(sealed: Sealed) -> MadeBundleAnswer:
    """Return what is printed of a bundle that was made."""
    return MadeBundleAnswer(bundle=str(sealed.path), sha256=sealed.sha256, size=sealed.size)


def replay_answer(cases: Sequence[Replayed]) -> ReplayAnswer:
    """Return what is printed of cases that were diagnosed again."""
    return ReplayAnswer(
        passed=all(case.passed for case in cases),
        cases=tuple(
            CaseAnswer(
                name=case.name,
                passed=case.passed,
                updated=case.updated,
                seconds=round(case.seconds, 3),
                changes=tuple(ChangeAnswer(change.what, change.old, change.new) for change in case.changes),
                error=case.error,
            )
            for case in cases
        ),
    )
