"""How a VM ended while it was captured, as manifest.json tells of it."""

from __future__ import annotations

import signal
from typing import Literal

import msgspec

How = Literal["exit", "signal", "dumping core", "unknown"]


class VmEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the VM's process during its capture, by no kill of ours.

    `after` is the question that it ended after, or else the step that had begun: an order in time, no cause.
    `answered` says of a question that its answer had come. `number` is the exit status or the signal; 0 where `how` is
    neither. `core` says that the kernel wrote a core. Times are CLOCK_MONOTONIC: it was alive at `alive_ns`, and was
    seen to have ended at `seen_ns`.
    """

    after: str
    step: str
    alive_ns: int
    seen_ns: int
    question: bool = False
    answered: bool = False
    how: How = "unknown"
    number: int = 0
    core: bool = False


def in_words(end: VmEnd) -> str:
    """Return a clause such as `QEMU was killed by SIGABRT (its core was dumped) after query-chardev was asked`."""
    return f"{manner(end)} {moment(end)}"


def manner(end: VmEnd) -> str:
    """Return how it ended, as far as the kernel told."""
    match end.how:
        case "exit":
            return f"QEMU exited with status {end.number}"
        case "signal":
            return f"QEMU was killed by {signal_name(end.number)}" + (" (its core was dumped)" if end.core else "")
        case "dumping core":
            return "QEMU was dying, and its core was being dumped,"
        case "unknown":
            return "QEMU ended, the kernel did not tell us how,"


def moment(end: VmEnd) -> str:
    """Return what it ended after."""
    if not end.question:
        return f"after the step {end.after} had begun"
    if end.answered:
        return f"within a second after {end.after} was answered"
    return f"after {end.after} was asked, which it did not answer"


def signal_name(number: int) -> str:
    """Return SIGABRT for 6; a number that has no name stays one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
