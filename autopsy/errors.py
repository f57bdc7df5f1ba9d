"""The errors a person can act on, each with the thing, the cause and the next move."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns; documented in README.md and relied on from outside."""

    DONE = 0
    OUR_BUG = 1
    USAGE = 2
    NO_SUCH_VM = 3
    NOT_PERMITTED = 4
    NOT_STORED = 5
    STILL_THERE = 6
    MISMATCH = 7
    NOT_STARTED = 8
    VM_ENDED = 9
    INTERRUPTED = 130


class AutopsyError(Exception):
    """An error that says what is wrong with which thing, and what to do next."""

    exit_code = ExitCode.OUR_BUG

    def __init__(self, thing: str, cause: str, *, remedy: str) -> None:
        super().__init__(f"{thing}: {cause}")
        self.thing = thing
        self.cause = cause
        self.remedy = remedy


class UsageError(AutopsyError):
    """The command line asks for something that cannot be meant."""

    exit_code = ExitCode.USAGE


class AmbiguousVm(UsageError):
    """One name, several virtual machines."""


class NoSuchVm(AutopsyError):
    """No running virtual machine answers to that name."""

    exit_code = ExitCode.NO_SUCH_VM


class NotQemu(NoSuchVm):
    """The process is there, but it is no QEMU."""


class NotPermitted(AutopsyError):
    """The kernel refuses to show us the process."""

    exit_code = ExitCode.NOT_PERMITTED


class NotStored(AutopsyError):
    """The evidence could not be stored safely; nothing was killed."""

    exit_code = ExitCode.NOT_STORED


class StillThere(AutopsyError):
    """The kill was sent, but the process has not gone."""

    exit_code = ExitCode.STILL_THERE


class DamagedBundle(AutopsyError):
    """The bundle is cut short, altered, or not a bundle at all."""

    exit_code = ExitCode.MISMATCH


class NewerBundle(DamagedBundle):
    """The bundle was written by a newer autopsy than this one can read."""


class ExaminationFailed(AutopsyError):
    """A part of the frozen evidence could not be worked out; what was collected stays."""
