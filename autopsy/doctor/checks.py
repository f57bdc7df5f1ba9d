"""What was found out about this host, one record for each thing that a capture needs."""

from __future__ import annotations

from enum import Enum

import msgspec


class Result(Enum):
    """OK: as it should be. NOTE: a capture is whole all the same. LACKS: it would leave something out."""

    OK = "ok"
    NOTE = "note"
    LACKS = "lacks"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tried. `found` says what came of it, `remedy` what to do; empty where there is nothing."""

    name: str
    result: Result
    found: str
    remedy: str = ""


class VmChecks(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture of one VM that runs here would find. `target` is the word that means it alone."""

    target: str
    name: str
    pid: int
    checks: tuple[Check, ...]


class CheckedHost(msgspec.Struct, frozen=True, kw_only=True):
    """This host, and the VMs on it."""

    host: tuple[Check, ...]
    vms: tuple[VmChecks, ...]

    @property
    def whole(self) -> bool:
        """Return whether a capture would leave nothing out."""
        checks = (*self.host, *(check for vm in self.vms for check in vm.checks))
        return not any(check.result is Result.LACKS for check in checks)


def ok(name: str, found: str) -> Check:
    """Return that something is as it should be."""
    return Check(name=name, result=Result.OK, found=found)


def note(name: str, found: str, remedy: str = "") -> Check:
    """Return that something is not as it could be, and costs no evidence."""
    return Check(name=name, result=Result.NOTE, found=found, remedy=remedy)


def lacks(name: str, found: str, remedy: str = "") -> Check:
    """Return that a capture would leave something out."""
    return Check(name=name, result=Result.LACKS, found=found, remedy=remedy)
