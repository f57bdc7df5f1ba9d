"""An outcome as it goes through the pipe between a child that has worked and whoever waits for it."""

from __future__ import annotations

import msgspec

from autopsy.bundle.manifest import OutcomeName
from autopsy.capture.step import Collected, Failed, Outcome, Skipped, TimedOut


class OutcomeWire(msgspec.Struct, frozen=True):
    """An outcome by its name, and the time that its step ran, and waited for a CPU, in ns."""

    kind: OutcomeName
    why: str
    stop_ns: int
    ran_ns: int = 0
    waited_ns: int = 0


def as_wire(outcome: Outcome) -> OutcomeWire:
    """Return what is sent of an outcome."""
    match outcome:
        case Collected(why, stop_ns):
            return OutcomeWire("Collected", why, stop_ns)
        case TimedOut(why):
            return OutcomeWire("TimedOut", why, 0)
        case Failed(why):
            return OutcomeWire("Failed", why, 0)
        case Skipped(why):
            return OutcomeWire("Skipped", why, 0)


def from_wire(wire: OutcomeWire) -> Outcome:
    """Return the outcome that was sent."""
    match wire.kind:
        case "Collected":
            return Collected(wire.why, wire.stop_ns)
        case "TimedOut":
            return TimedOut(wire.why)
        case "Failed":
            return Failed(wire.why)
        case "Skipped":
            return Skipped(wire.why)
