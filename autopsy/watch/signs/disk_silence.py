"""Tells a disk that has fallen silent while the guest goes on, from what QEMU counts: pure, fed an answer at a time.

A guest that computes looks the same. So it is told as a suspicion alone, only of a disk that used to complete requests,
and only once its silence has lasted several times longer than any that was seen before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.watch.model import SilentDisk

SECOND = 1_000_000_000
HABIT = 5  # answers in which a disk had completed requests since the one before, until it is known for that
LONGER = 3  # times the longest silence that came to an end
LEAST_SHARE = 0.02  # of a processor: below that a guest idles
GOES_ON = 0.5  # of what its vCPUs took while the disk completed requests
MOST_DISKS = 256


@dataclass(slots=True)
class DiskHistory:
    """What is known of one disk. `active_ns` and `vcpu_ns` are of the last answer that showed completed requests."""

    completed: int
    active_ns: int
    vcpu_ns: int
    active: int = 0
    longest_ns: int = 0
    shares: deque[float] = field(default_factory=lambda: deque(maxlen=HABIT))


@dataclass(slots=True)
class DiskSilence:
    """What is remembered of one VM's disks; `update` takes one answer after the other.

    Times are CLOCK_MONOTONIC in ns; `vcpu_ns` is what all vCPUs have run so far.
    """

    disks: dict[str, DiskHistory] = field(default_factory=dict)
    answered_ns: int = 0
    vcpu_ns: int = 0

    def begin_anew(self) -> None:
        """Count no silence from before now: the guest could not have asked for anything."""
        self.answered_ns = 0

    def update(
        self, at_ns: int, vcpu_ns: int, completed: Mapping[str, int], silent_seconds: float
    ) -> tuple[SilentDisk, ...]:
        """Take how many requests each disk has completed so far; return the disks whose silence is suspicious."""
        passed = at_ns - self.answered_ns if self.answered_ns else 0
        share = (vcpu_ns - self.vcpu_ns) / passed if passed > 0 else 0.0
        self.answered_ns, self.vcpu_ns = at_ns, vcpu_ns
        known = self.disks
        self.disks = {}
        for name, count in sorted(completed.items())[:MOST_DISKS]:
            disk = known.get(name) or DiskHistory(count, at_ns, vcpu_ns)
            self.disks[name] = disk
            if not passed:
                disk.completed, disk.active_ns, disk.vcpu_ns = count, at_ns, vcpu_ns
            elif count != disk.completed:
                if disk.active and at_ns - disk.active_ns > passed:
                    disk.longest_ns = max(disk.longest_ns, at_ns - disk.active_ns)
                disk.completed, disk.active_ns, disk.vcpu_ns = count, at_ns, vcpu_ns
                disk.active += 1
                disk.shares.append(share)
        return tuple(self._suspicious(at_ns, vcpu_ns, int(silent_seconds * SECOND)))

    def _suspicious(self, at_ns: int, vcpu_ns: int, least_ns: int) -> Iterable[SilentDisk]:
        for name, disk in self.disks.items():
            silent_ns = at_ns - disk.active_ns
            if disk.active < HABIT or silent_ns < max(least_ns, LONGER * disk.longest_ns) or not silent_ns:
                continue
            before = sum(disk.shares) / len(disk.shares)
            since = (vcpu_ns - disk.vcpu_ns) / silent_ns
            if since >= max(LEAST_SHARE, GOES_ON * before):
                yield SilentDisk(
                    name=name,
                    seconds=round(silent_ns / SECOND, 1),
                    vcpu_share=round(since, 3),
                    vcpu_share_before=round(before, 3),
                )
