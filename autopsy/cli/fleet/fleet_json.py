"""What the commands of `autopsy fleet` print with --json."""

from __future__ import annotations

from typing import Any

import msgspec


class FleetDiagnosed(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet diagnose` did: `bundles` are those of this run, `errors` those that could not be diagnosed."""

    into: str
    analyzer: str
    bundles: int
    errors: int
    known: int
    parts: tuple[str, ...]
    seconds: float
    cpu_seconds: float


class SentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle that is in its place; `new` is false where it was there before. `sha256` is that of what was sent."""

    bundle: str
    place: str
    key: str
    sha256: str
    size: int
    new: bool


class WaitingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle that waits in the spool, and why."""

    bundle: str
    place: str
    why: str


class FleetSent(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet send` did."""

    sent: tuple[SentAnswer, ...]
    waiting: tuple[WaitingAnswer, ...]


class FateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One stored bundle, whether it stays, and why."""

    key: str
    size: int
    keep: bool
    why: str


class FleetPruned(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet prune` found; with `dry_run` nothing was removed."""

    place: str
    dry_run: bool
    bundles: tuple[FateAnswer, ...]


class FleetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet query` found: each row is an object with a value for each of the columns."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
