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


class FleetAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleet query` found: each row is an object with a value for each of the columns."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
