"""Adds to a list of VMs what a watch that runs beside it knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopsy.target.ps import ListedVm
from autopsy.text import visible
from autopsy.watch.model import Round, SilentDisk, StallKind, WatchedVm

# In few words, as a sign of trouble.
SIGNS = {
    StallKind.DISK: "its disk stands still",
    StallKind.REQUEST: "a block request does not move",
    StallKind.MAIN_LOOP: "its main loop does not come round",
    StallKind.VCPUS: "its vCPUs do not run",
    StallKind.HOST: "it stands still with other VMs, or with a device of the host's",
}


def with_watch(vms: tuple[ListedVm, ...], last: Round | None) -> tuple[ListedVm, ...]:
    """Return the VMs with the age of each one's oldest request, and its stall as a sign, by the watch's last round."""
    known = {(vm.pid, vm.start_ticks): vm for vm in last.vms} if last else {}
    return tuple(
        _told(vm, watched) if (watched := known.get((vm.pid, vm.start_ticks))) is not None else vm for vm in vms
    )


def silence(disks: Sequence[SilentDisk]) -> str:
    """Return in words which disk is silent, and for how long: of several the one that has been so for longest."""
    longest = max(disks, key=lambda disk: disk.seconds)
    others = f" (like {len(disks) - 1} more)" if len(disks) > 1 else ""
    return (
        f"{visible(longest.name)}{others} completes nothing for {longest.seconds:.0f} s, and the guest may only compute"
    )


def _told(vm: ListedVm, watched: WatchedVm) -> ListedVm:
    signs = vm.signs
    if watched.stalled is not None:
        signs = (f"{SIGNS[watched.stalled]}, says the watch", *signs)
    elif watched.silent_disks:
        signs = (f"{silence(watched.silent_disks)}, says the watch", *signs)
    return replace(vm, oldest_request_seconds=round(watched.oldest_unmoved_seconds, 1), signs=signs)
