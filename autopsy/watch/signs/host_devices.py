"""What the host's devices below a VM's disks have in flight, and whether they complete any, by sysfs.

No file of the VM's is touched. A file's device is told by its mount, as stat(2) of a file may hang; a file system
without a device of its own, as those of a network, has none.
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

SYSFS = "/sys/dev/block/{}/stat"
IN_FLIGHT = 8  # its field, of Documentation/block/stat.rst
COMPLETED = (0, 4, 11, 15)  # reads, writes, discards, flushes; older kernels have not all of them
AGAIN_SECONDS = 60.0  # between two looks at which files a VM has open
MOST_DESCRIPTORS = 256
MOST_MOUNTINFO = 4 << 20
SMALL = 256
DEVICE = re.compile(r"(?!0:)\d+:\d+")  # 0:N has no device below it
NO_DISK = ("/dev/null", "/dev/kvm", "/dev/net/", "/dev/vhost", "/dev/pts/", "/dev/urandom", "/memfd:")


@dataclass(frozen=True, slots=True)
class HostRequests:
    """What the devices below one VM's files have in flight, None where none is known.

    `unmoved_ns` is for how long one of them has had some in flight and completed none, the one that stands for longest.
    """

    in_flight: int | None = None
    unmoved_ns: int = 0


@dataclass(frozen=True, slots=True)
class DeviceCount:
    """One device at one moment; `since_ns` is since when it has had requests in flight and completed none."""

    in_flight: int
    completed: int
    since_ns: int


@dataclass(slots=True)
class HostDevices:
    """The devices of every VM, and what each had in flight at one moment: those that VMs share are read once."""

    devices: dict[int, tuple[float, frozenset[str]]] = field(default_factory=dict)
    counts: dict[str, DeviceCount | None] = field(default_factory=dict)
    # What was in flight then and has not been completed since is in flight still, however long ago that was.
    before: dict[str, DeviceCount | None] = field(default_factory=dict)
    counted_ns: int = 0

    def of(self, pid: int, now_ns: int) -> HostRequests:
        """Return what the devices below a VM's files have in flight."""
        if now_ns != self.counted_ns:
            self.before, self.counts, self.counted_ns = self.before | self.counts, {}, now_ns
        at, devices = self.devices.get(pid, (-AGAIN_SECONDS, frozenset()))
        if monotonic() - at >= AGAIN_SECONDS:
            devices = devices_of(pid)
            self.devices[pid] = (monotonic(), devices)
        for device in devices - self.counts.keys():
            self.counts[device] = _count(device, self.before.get(device), now_ns)
        known = [count for device in devices if (count := self.counts[device]) is not None]
        if not known:
            return HostRequests()
        return HostRequests(sum(count.in_flight for count in known), max(now_ns - count.since_ns for count in known))

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


def _count(device: str, before: DeviceCount | None, now_ns: int) -> DeviceCount | None:
    try:
        numbers = [int(word) for word in read_kernel(SYSFS.format(device), SMALL).split()]
        in_flight, completed = numbers[IN_FLIGHT], sum(numbers[place] for place in COMPLETED if place < len(numbers))
    except (OSError, ValueError, IndexError):
        return None
    stands = before is not None and before.in_flight > 0 and in_flight > 0 and completed == before.completed
    return DeviceCount(in_flight, completed, before.since_ns if before is not None and stands else now_ns)
