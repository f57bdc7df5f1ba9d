"""The typed facts about disks, their requests, their limits and their jobs."""

from __future__ import annotations

from autopsy.bundle.heap.devices import VirtQueue
from autopsy.bundle.heap.virtio import RingWords
from autopsy.bundle.records import EventFd, Frame
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact, Known
from autopsy.facts.model.yield_points import Park as Park  # noqa: PLC0414 - facts.py passes it on


@dataclass(frozen=True, slots=True, kw_only=True)
class CoroutineFact:
    """One parked coroutine. `stuck` says whether it stood at the same place in both snapshots.

    `same_request` of one that moved: the request that it carries is as it was, by every word of it on its stack.
    `of_job` says that it carries a request of a block job's own, and so none of a disk's; `by_mirror` that it carries
    a guest's write which a mirror writes to its target, too, before the guest hears of it (copy-mode=write-blocking).
    """

    address: int
    park: Park
    named_by: tuple[str, ...]
    frames: tuple[Frame, ...]
    stuck: Fact[bool]
    context: int
    locks_held: int
    scheduled_by: str
    node: Fact[str]
    disk: Fact[str]
    cite: Cite
    of_job: bool = False
    same_request: bool = False
    by_mirror: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One block node. `throttle_group` is set for a throttle filter, `server` for a network driver.

    `opened` is the file that it has open, where that is known by another name: a link's end, a descriptor's file.
    """

    name: str
    driver: str
    filename: str = ""
    children: tuple[str, ...] = ()
    opened: str = ""
    aio: str = ""
    throttle_group: str = ""
    server: str = ""
    cite: Cite


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are set, by QEMU's names (`bps-total`, `iops-read-max`), the zero ones left out."""

    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStats:
    """The completed operations of one disk at one moment, `total_ns` what they took together."""

    reads: int
    writes: int
    flushes: int
    unmaps: int
    failed: int
    idle_ns: int | None
    cite: Cite
    total_ns: int = 0

    @property
    def mean_ns(self) -> int:
        """Return what an operation took on the average, 0 where none has completed."""
        return self.total_ns // self.completed if self.completed else 0

    @property
    def completed(self) -> int:
        """Return every operation that has completed."""
        return self.reads + self.writes + self.flushes + self.unmaps


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFact:
    """One disk of the guest, or one export of a storage daemon, from its device to the node that does the I/O.

    `completed` is how many operations ended between the two snapshots; `in_flight` how many QEMU held at the first.
    """

    name: str
    backend: str
    device: str
    model: Fact[str]
    iothread: Fact[str]
    nodes: tuple[Node, ...]
    throttle_group: Fact[str]
    limits: Fact[Limits]
    io_status: Fact[str]
    stats: Fact[BlockStats]
    stats_again: Fact[BlockStats]
    completed: Fact[int]
    in_flight: Fact[int]
    quiesced: Fact[int]
    inserted: bool
    cite: Cite
    is_export: bool = False

    @property
    def on_its_way(self) -> tuple[str, ...]:
        """Return the throttle groups that its requests pass: its own, and that of each filter below it."""
        own = self.throttle_group.value if isinstance(self.throttle_group, Known) else ""
        return tuple(dict.fromkeys(filter(None, (own, *(node.throttle_group for node in self.nodes)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleGroupFact:
    """A throttle group, with its run-time state where the heap could be read.

    `timer_ns` is how far in the future the next timer fires, seen from the freeze (negative: overdue; absent: no timer
    pending); `due_ns` is when it would fire under the limits that are set now.
    """

    name: str
    members: tuple[str, ...]
    limits: Fact[Limits]
    armed: Fact[bool]
    timer_ns: Fact[int | None]
    due_ns: Fact[int]
    pending: Fact[int]
    restarting: Fact[bool]
    lock_address: Fact[int]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFact:
    """One block job at the first snapshot; `progressed` compares it with the second. A `speed` of 0 is no limit."""

    id: str
    kind: str
    status: str
    current: int
    total: int
    paused: bool
    error: str
    progressed: Fact[int]
    speed: int
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Queues:
    """The virtqueues of virtio disks and SCSI controllers that are set up, at both looks.

    `notifiers` are eventfds as both looks saw them, `words` and `words_again` the index words of rings in the guest's
    memory after each; empty where that is not known. `broken` are the devices that QEMU serves no more at the first
    look, `still_broken` those at the second.
    """

    first: tuple[VirtQueue, ...]
    second: Fact[tuple[VirtQueue, ...]]
    notifiers: tuple[EventFd, ...]
    words: tuple[RingWords, ...]
    words_again: tuple[RingWords, ...]
    words_cite: Cite
    broken: frozenset[str]
    still_broken: frozenset[str]
    devices_cite: Cite
    cite: Cite

    def notifier(self, fd: int) -> EventFd | None:
        """Return an eventfd as both looks saw it."""
        return next((notifier for notifier in self.notifiers if notifier.fd == fd), None)
