"""Tells one moment on both clocks: UTC, and the host's own, because its logs run on that."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from autopsy.bundle.manifest import Clocks
from autopsy.dataclass import dataclass

ZONE = re.compile(r"([+-])(\d{2}):?(\d{2})(?:\s+(.*))?")


@dataclass(frozen=True, slots=True)
class Calendar:
    """Turns CLOCK_MONOTONIC into wall clocks by one moment that was read on both."""

    anchor: datetime | None
    anchor_ns: int
    offset: timedelta
    zone: str

    def utc(self, ns: int, *, digits: int = 3) -> str:
        """Return `2026-06-11 15:21:04.125`."""
        return _words(self._at(ns), digits)

    def host(self, ns: int, *, digits: int = 3) -> str:
        """Return the same moment as the host's own clock showed it."""
        moment = self._at(ns)
        return _words(moment.astimezone(timezone(self.offset)) if moment else None, digits)

    def both(self, iso: str) -> str:
        """Return a moment that is told in ISO 8601 on both clocks, or as it is told."""
        try:
            moment = datetime.fromisoformat(iso)
        except ValueError:
            return iso
        if moment.tzinfo is None:
            return iso
        local = _words(moment.astimezone(timezone(self.offset)), 0)
        return f"{_words(moment.astimezone(UTC), 0)} UTC ({local} {self.zone})"

    def time_of_day(self, iso: str) -> str:
        """Return `16:47:42 UTC` of a moment that is told in ISO 8601, nothing of another."""
        try:
            moment = datetime.fromisoformat(iso)
        except ValueError:
            return ""
        return f"{moment.astimezone(UTC):%H:%M:%S} UTC" if moment.tzinfo else ""

    def _at(self, ns: int) -> datetime | None:
        if self.anchor is None:
            return None
        try:
            return self.anchor + timedelta(microseconds=(ns - self.anchor_ns) / 1000)
        except OverflowError:  # a bundle may claim any number
            return None


def calendar(clocks: Clocks) -> Calendar:
    """Return the calendar of a capture by the clocks of its beginning."""
    match = ZONE.match(clocks.zone)
    offset = timedelta()
    if match and int(match[2]) < 24 and int(match[3]) < 60:
        offset = timedelta(hours=int(match[2]), minutes=int(match[3])) * (-1 if match[1] == "-" else 1)
    try:
        anchor = datetime.fromisoformat(clocks.utc)
    except ValueError:
        anchor = None
    if anchor is not None and anchor.tzinfo is None:
        anchor = anchor.replace(tzinfo=UTC)
    return Calendar(anchor, clocks.monotonic_ns, offset, clocks.zone)


def _words(moment: datetime | None, digits: int) -> str:
    if moment is None:
        return "unknown"
    return f"{moment:%Y-%m-%d %H:%M:%S}" + (f".{moment.microsecond:06d}"[: 1 + digits] if digits else "")
