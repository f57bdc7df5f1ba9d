"""How long each part of a freeze took."""

from __future__ import annotations

import time
from dataclasses import field

from autopsy.dataclass import dataclass


@dataclass(slots=True)
class Phases:
    """How long each part of the work took, in ms."""

    ms: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def done(self, phase: str) -> None:
        """End the phase that has just been."""
        now = time.monotonic()
        self.ms[phase] = round((now - self.since) * 1000, 3)
        self.since = now
