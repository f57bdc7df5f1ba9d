"""What the heap of a QEMU with DWARF tells of its block layer, event loops and devices, as strict types.

Like records.py: measurements, no judgement. Addresses are integers, times are ns, an absent name is the empty string.
A member that is None does not exist in this QEMU's layout, or lay on a page that was torn (heap.json's `notes` say so).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from autopsy.bundle.heap.devices import HeapJob, Lsi, MonitorState, NbdClient, ScsiDevice, VirtQueue
from autopsy.bundle.heap.loops import CoLock, Context, GraphLock, HeapMutex, NamedLock, ThreadLocals, Timer

SinceFirst = Literal["stuck", "gone", "unknown"]


class TrackedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A BdrvTrackedRequest, which lies on its coroutine's stack.

    `since_first` is `stuck` when the second snapshot holds the same request at the same place, `gone` when it does
    not, `unknown` when there was one snapshot.
    """

    address: int
    offset: int
    bytes: int
    type: str
    coroutine: int
    serialising: bool = False
    overlap_offset: int = 0
    overlap_bytes: int = 0
    waiting_for: int = 0
    since_first: SinceFirst = "unknown"


class Edge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A BdrvChild as its parent sees it. `quiesced` is its parent's: a counter until QEMU 7.2, then a flag."""

    child: str
    node: int
    node_name: str = ""
    role: int = 0
    quiesced: int = 0


class BlockNode(msgspec.Struct, frozen=True, kw_only=True):
    """A BlockDriverState. `flush_waiters` are the coroutines that wait for another's flush.

    `format_lock` is the lock that a format driver (qcow2) takes around its metadata.
    """

    address: int
    node_name: str
    driver: str
    filename: str
    context: int
    in_flight: int
    serialising_in_flight: int
    quiesce_counter: int
    recursive_quiesce_counter: int | None
    active_flush: bool
    flush_waiters: tuple[int, ...]
    children: tuple[Edge, ...]
    requests: tuple[TrackedRequest, ...]
    plugged: int | None = None
    format_lock: CoLock | None = None


class BlockBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A BlockBackend. `queued_requests` are coroutines that wait for a drain to end.

    `device` is the qdev id of what it belongs to, or its QOM path; `device_type` is that device's QOM type.
    """

    address: int
    name: str
    device: str
    device_type: str
    node: int
    node_name: str
    context: int
    in_flight: int
    quiesce_counter: int
    queued_requests: tuple[int, ...]
    disable_request_queuing: bool | None
    io_status: str
    throttle_group: str = ""


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """One LeakyBucket; units are bytes or operations, `avg` and `max` per second, 0 is no limit."""

    name: str
    avg: float
    max: float
    level: float
    burst_level: float
    burst_length: int


class ThrottleMember(msgspec.Struct, frozen=True, kw_only=True):
    """A ThrottleGroupMember; pairs are (read, write). `queued` are the coroutines parked in its queues."""

    address: int
    owner: str
    owner_address: int
    context: int
    queued: tuple[tuple[int, ...], tuple[int, ...]]
    pending_requests: tuple[int, int]
    io_limits_disabled: int
    restart_pending: int
    timers: tuple[Timer | None, Timer | None]
    queue_lock: CoLock | None = None


class HeapThrottleGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A ThrottleGroup with every bucket that has a limit or a level; pairs are (read, write).

    `tokens` name the member whose turn it is. `lock_at` to `lock_at + 40` is its pthread mutex; `size` is the object's.
    """

    address: int
    size: int
    name: str
    clock: str
    lock: HeapMutex
    buckets: tuple[Bucket, ...]
    operation_size: int
    previous_leak_ns: int
    tokens: tuple[str, str]
    any_timer_armed: tuple[bool, bool]
    members: tuple[ThrottleMember, ...]


class HeapSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The block layer, event loops and devices at one moment. `aio_waiters` counts threads inside AIO_WAIT_WHILE."""

    taken_ns: int
    run_state: str = ""
    migration: str = ""
    bql: HeapMutex | None = None
    graph_lock: GraphLock | None = None
    aio_waiters: int | None = None
    drain_all_count: int | None = None
    dispatcher_busy: bool | None = None
    threads: tuple[ThreadLocals, ...] = ()
    backends: tuple[BlockBackend, ...] = ()
    nodes: tuple[BlockNode, ...] = ()
    throttle_groups: tuple[HeapThrottleGroup, ...] = ()
    contexts: tuple[Context, ...] = ()
    jobs: tuple[HeapJob, ...] = ()
    nbd_clients: tuple[NbdClient, ...] = ()
    virtqueues: tuple[VirtQueue, ...] = ()
    scsi_devices: tuple[ScsiDevice, ...] = ()
    lsi: tuple[Lsi, ...] = ()
    monitors: tuple[MonitorState, ...] = ()
    locks: tuple[NamedLock, ...] = ()
    notes: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()  # the lists that are longer than what was read of them


class Heap(msgspec.Struct, frozen=True, kw_only=True):
    """The heap walk. `first` is None when it could not be made, and `why` says what was missing.

    `second` is the second snapshot where there was one; requests of `first` say whether they are still in it.
    """

    first: HeapSnapshot | None = None
    second: HeapSnapshot | None = None
    symbols: str = ""
    why: str = ""
    ms: float = 0
