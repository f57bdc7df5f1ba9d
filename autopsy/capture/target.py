"""One process, held by a pidfd so that its number can never come to mean another."""

from __future__ import annotations

from dataclasses import dataclass

from autopsy.bundle.schema import TargetRecord


@dataclass(frozen=True, slots=True)
class Target:
    """The VM's process. `pidfd` stays open for as long as the capture runs."""

    record: TargetRecord
    pidfd: int

    @property
    def pid(self) -> int:
        """Return the process id in our PID namespace."""
        return self.record.pid
