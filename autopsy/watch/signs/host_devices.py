"""How many requests the host's devices below a VM's disks have in flight, from sysfs: no file of the VM's is touched.

A file's device is told by its mount, as stat(2) of a file may hang; a file system without a device of its own, as
those of a network, has none.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import field
from time import monotonic

from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.linux.mounts import MNT_ID, mounts_of

SYSFS = "/sys/dev/block/{}/inflight"
AGAIN_SECONDS = 60.0  # between two looks at which files a VM has open
MOST_DESCRIPTORS = 256
MOST_MOUNTINFO = 4 << 20
SMALL = 256
DEVICE = re.compile(r"(?!0:)\d+:\d+")  # 0:N has no device below it
NO_DISK = ("/dev/null", "/dev/kvm", "/dev/net/", "/dev/vhost", "/dev/pts/", "/dev/urandom", "/memfd:")


@dataclass(slots=True)
class HostDevices:
    """The devices of every VM, and what each had in flight at one moment: those that VMs share are read once."""

    devices: dict[int, tuple[float, frozenset[str]]] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)
    counted_ns: int = 0

    def in_flight(self, pid: int, now_ns: int) -> int | None:
        """Return how many requests the devices below a VM's files have in flight, None where none is known."""
        if now_ns != self.counted_ns:
            self.counts, self.counted_ns = {}, now_ns
        at, devices = self.devices.get(pid, (-AGAIN_SECONDS, frozenset()))
        if monotonic() - at >= AGAIN_SECONDS:
            devices = devices_of(pid)
            self.devices[pid] = (monotonic(), devices)
        for device in devices - self.counts.keys():
            self.counts[device] = _in_flight(device)
        known = [count for device in devices if (count := self.counts[device]) is not None]
        return sum(known) if known else None

    def forget(self, pid: int) -> None:
        """Let go of a VM."""
        self.devices.pop(pid, None)


def devices_of(pid: int) -> frozenset[str]:
    """Return MAJ:MIN of the devices that a process's open files lie on, or are."""
    devices = set()
    mounts = None
    with suppress(OSError):
        for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int)[:MOST_DESCRIPTORS]:
            with suppress(OSError):
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if not link.startswith("/") or link.startswith(NO_DISK):
                    continue
                if link.startswith("/dev/"):
                    status = os.lstat(link)
                    if stat.S_ISBLK(status.st_mode):
                        devices.add(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
                    continue
                mount = MNT_ID.search(read_kernel(f"/proc/{pid}/fdinfo/{name}", SMALL * 16))
                if mounts is None:
                    mounts = mounts_of(read_kernel(f"/proc/{pid}/mountinfo", MOST_MOUNTINFO))
                if mount and (lies_on := mounts.get(int(mount[1]))):
                    devices.add(lies_on.device)
    return frozenset(filter(DEVICE.fullmatch, devices))


def _in_flight(device: str) -> int | None:
    try:
        return sum(map(int, read_kernel(SYSFS.format(device), SMALL).split()))
    except (OSError, ValueError):
        return None
