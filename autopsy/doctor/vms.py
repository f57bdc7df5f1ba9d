"""What a capture of each VM that runs here would lack, and why: each is looked at as a capture begins."""

from __future__ import annotations

import os
import shutil

from autopsy.bundle.manifest import Domain, TargetRecord
from autopsy.capture.freeze.step import unsupported
from autopsy.doctor.checks import Check, VmChecks, lacks, note, ok
from autopsy.doctor.distribution import Distribution
from autopsy.doctor.symbols import symbols
from autopsy.errors import AutopsyError, NoSuchVm
from autopsy.linux import environment
from autopsy.target.ps import ListedVm, census
from autopsy.target.target import find_target

ACCESS = "access"
MONITOR = "monitor"
FREEZE = "freeze"


def vms(distribution: Distribution) -> tuple[VmChecks, ...]:
    """Return every VM that runs here with what a capture would find; nothing is asked of any."""
    return tuple(
        VmChecks(target=vm.target, name=vm.name, pid=vm.pid, checks=checks)
        for vm in census()
        if (checks := _checks(vm, distribution))
    )


def _checks(vm: ListedVm, distribution: Distribution) -> tuple[Check, ...]:
    """Return what was found out about a VM, nothing for one that has ended meanwhile."""
    try:
        target = find_target(vm.target)
    except NoSuchVm:
        return ()
    except AutopsyError as error:
        return (lacks(ACCESS, str(error), error.remedy),)
    try:
        record = target.record
        return (*_frozen(record), _monitor(record, distribution), symbols(record, distribution))
    finally:
        os.close(target.pidfd)


def _frozen(record: TargetRecord) -> tuple[Check, ...]:
    try:
        why = unsupported(record.pid)
    except OSError as error:
        return (lacks(FREEZE, f"its auxiliary vector: {error.strerror}"),)
    if why:
        return (lacks(FREEZE, why, "`capture --live-gdb` attaches gdb instead"),)
    return (ok(FREEZE, "its memory and registers can be had"),)


def _monitor(record: TargetRecord, distribution: Distribution) -> Check:
    """Say how QEMU would be asked, and by whom that way is taken."""
    if record.domain is not None:
        return _through_libvirt(record.domain, distribution)
    asked = [monitor for monitor in record.monitors if monitor.protocol == "qmp"]
    reached = next((monitor for monitor in asked if monitor.reachable), None)
    if reached is not None and reached.held_by:
        return note(MONITOR, f"{reached.address} is held by {reached.held_by}: a capture waits in the queue behind it")
    if reached is not None:
        return ok(MONITOR, reached.address)
    remedy = "start it with -qmp unix:PATH,server=on,wait=off"
    if asked:
        kinds = ", ".join(sorted({monitor.transport for monitor in asked}))
        return lacks(MONITOR, f"its QMP monitor ({kinds}) is none that a capture uses: QEMU is not asked", remedy)
    return lacks(MONITOR, "it has no QMP monitor: QEMU is not asked", remedy)


def _through_libvirt(domain: Domain, distribution: Distribution) -> Check:
    if not domain.connection:
        return lacks(MONITOR, "its libvirt daemon cannot be reached from here", "run where libvirtd runs")
    if shutil.which("virsh", path=environment.path()) is None:
        install = distribution.install("libvirt-clients")
        return lacks(MONITOR, "libvirt holds its monitor, and virsh is not installed", install)
    return ok(MONITOR, f"virsh -c {domain.connection}")
