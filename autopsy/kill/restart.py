"""Starts a VM again through whoever owns it, after its kill."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial

from autopsy.capture.host.cgroups import scopes
from autopsy.capture.reading.programs import output
from autopsy.capture.reading.reader import Truncated, Unreadable
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.files import read_kernel
from autopsy.target import qemu_processes
from autopsy.target.platforms.catalogue import platform_of
from autopsy.target.platforms.platform import ROOTS, Roots, VmClaim
from autopsy.target.resolve import all_claims, is_true
from autopsy.target.target import Target
from autopsy.text import printable

START_SECONDS = 60.0  # `qm start` waits for storage and network of its own; virsh takes a second
LOOK_SECONDS = 5.0
MARGIN_SECONDS = 2.0
UNIT_SECONDS = 0.5  # a cgroup that is stuck
UNIT = re.compile(r"(?!user@)[A-Za-z0-9:_.\\@-]+\.service")


@dataclass(frozen=True, slots=True)
class Started:
    """Whether the VM runs again, and what is to be said of it. `words` tell why where it does not."""

    done: bool
    words: str


def command_for(target: Target) -> tuple[str, ...]:
    """Return the command that starts this VM again, empty when nobody here can."""
    return platform_of(target.record.manager).start(target.record)


def unit_of(target: Target) -> str:
    """Return the systemd service that a VM runs in, empty when there is none; ask while it lives."""
    try:
        raw = in_child(partial(read_kernel, f"/proc/{target.pid}/cgroup"), UNIT_SECONDS)
    except (ChildTimedOut, ChildFailed):
        return ""
    return next((unit for unit in scopes([raw]) if UNIT.fullmatch(unit)), "")


def start_again(target: Target, unit: str = "", *, seconds: float = START_SECONDS, roots: Roots = ROOTS) -> Started:
    """Start the VM again, wait until its process is there, and tell what happened. Never raises.

    `unit` is the service that it ran in: that is told, for systemd may start it by itself, or must not.
    """
    command = command_for(target)
    if not command:
        return Started(done=False, words=f"not started again: {_why_not(target, unit)}")
    begun = time.monotonic()
    domain = target.record.domain
    said = _run(command, domain.user if domain else None, seconds)
    pid = _wait_for(target, 0 if said else LOOK_SECONDS, roots)
    took = time.monotonic() - begun
    spoken = platform_of(target.record.manager).start_words
    if pid is None:
        return Started(done=False, words=f"not started again: {spoken}: {said or 'no process of it was seen'}")
    how = f"by {spoken}" if not said else f"by somebody else ({spoken}: {said})"
    return Started(done=True, words=f"started again {how}: process {pid}, after {took:.1f} s")


def nobody_can(target: Target, unit: str = "") -> str:
    """Return why nobody here can start this VM again, empty where somebody can."""
    return "" if command_for(target) else _why_not(target, unit)


def _why_not(target: Target, unit: str) -> str:
    if why := platform_of(target.record.manager).why_no_start(target.record):
        return why
    if unit:
        return f"it ran in {unit}; `systemctl start {unit}` starts it, unless systemd does by itself (Restart=)"
    return "nobody but its own command line speaks for it; that is in evidence/witness/cmdline of the bundle"


def _run(command: Sequence[str], user: int | None, seconds: float) -> str:
    """Run the command and return what it said of a failure, empty when it succeeded."""
    try:
        in_child(partial(_output, command, user, seconds), seconds + MARGIN_SECONDS)
    except ChildTimedOut:
        return f"no end in {seconds:.0f} s"
    except ChildFailed as error:
        return printable(str(error).partition(": ")[2] or str(error))
    return ""


def _output(command: Sequence[str], user: int | None, seconds: float) -> bytes:
    printed = output(command, seconds=seconds, user=user)
    if isinstance(printed, Truncated):
        raise Unreadable(printed.why)
    return printed


def _is_same(claim: VmClaim, target: Target, roots: Roots) -> bool:
    """Return whether a claim is of the VM that was killed: two users may each have a libvirt domain of one name."""
    record = target.record
    if (claim.manager, claim.name) != (record.manager, record.name):
        return False
    if record.domain is None:
        return True
    domain = platform_of(claim.manager).domain_of(claim, roots)
    return domain is not None and (domain.connection, domain.user) == (record.domain.connection, record.domain.user)


def _wait_for(target: Target, seconds: float, roots: Roots) -> int | None:
    """Return the process that is this VM now, None when none has come in time."""
    give_up = time.monotonic() + seconds
    while True:
        for claim in all_claims((), roots):
            if (
                _is_same(claim, target, roots)
                and claim.pid != target.pid
                and is_true(claim, qemu_processes.tell([claim.pid])[claim.pid])
            ):
                return claim.pid
        if time.monotonic() >= give_up:
            return None
        time.sleep(0.1)
