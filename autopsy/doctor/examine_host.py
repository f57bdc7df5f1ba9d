"""Goes through all that a capture needs of this host, and of the VMs on it."""

from __future__ import annotations

from autopsy.doctor.checks import CheckedHost
from autopsy.doctor.distribution import distribution
from autopsy.doctor.kernel import kernel
from autopsy.doctor.programs import programs
from autopsy.doctor.room import room
from autopsy.doctor.sandbox import try_sandbox
from autopsy.doctor.snapshot import try_snapshots
from autopsy.doctor.vms import vms


def examine_host() -> CheckedHost:
    """Return what a capture would have here, tried out; no VM is asked, stopped or written to.

    Concurrency: call it only from a process with one thread.
    """
    here = distribution()
    host = (*try_snapshots(), try_sandbox(), *programs(here), *room(), *kernel())
    return CheckedHost(host=host, vms=vms(here))
