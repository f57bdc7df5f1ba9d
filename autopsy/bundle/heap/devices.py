"""What the heap tells of those who make requests: devices, jobs, network clients, monitors.

Members mean what heap_records.py says at its head.
"""

from __future__ import annotations

import msgspec

from autopsy.bundle.heap.loops import CoLock, HeapMutex, Timer


class VirtQueue(msgspec.Struct, frozen=True, kw_only=True):
    """A VirtQueue that the guest has set up. Indices run modulo 65,536."""

    device: str
    device_type: str
    index: int
    size: int
    inuse: int
    last_avail_idx: int
    shadow_avail_idx: int
    used_idx: int
    signalled_used: int
    signalled_used_valid: bool
    notification: bool
    host_notifier_fd: int
    guest_notifier_fd: int
    host_notifier_enabled: bool | None


class ScsiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A SCSIRequest on its device's list. `command` is the CDB's first byte; `in_block_layer` says it has an AIOCB."""

    address: int
    tag: int
    command: int
    enqueued: bool
    canceled: bool
    retry: bool
    in_block_layer: bool


class ScsiDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A SCSIDevice with its requests; `requests_lock` exists since QEMU 8.2."""

    address: int
    size: int
    device: str
    device_type: str
    controller: str
    requests: tuple[ScsiRequest, ...]
    requests_lock: HeapMutex | None


class LsiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A lsi_request: `pending` bytes wait for the controller to reselect."""

    address: int
    tag: int
    pending: int
    dma_bytes: int
    out: bool


class Lsi(msgspec.Struct, frozen=True, kw_only=True):
    """An LSIState, registers by their names in the chip's manual.

    `waiting` is QEMU's word: nothing, reselect, dma scripts, dma in progress, scripts.
    """

    device: str
    waiting: str
    current: LsiRequest | None
    queue: tuple[LsiRequest, ...]
    registers: dict[str, int]
    scripts_timer: Timer | None
    reentrancy_level: int | None


class HeapJob(msgspec.Struct, frozen=True, kw_only=True):
    """A Job with its progress."""

    address: int
    id: str
    type: str
    status: str
    pause_count: int
    busy: bool
    paused: bool
    user_paused: bool
    cancelled: bool
    deferred_to_main_loop: bool
    progress_current: int
    progress_total: int
    coroutine: int
    context: int
    sleep_timer: Timer | None
    ret: int


class NbdRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of an NBD client in which a coroutine waits for its reply."""

    index: int
    coroutine: int
    offset: int
    receiving: bool


class NbdClient(msgspec.Struct, frozen=True, kw_only=True):
    """A BDRVNBDState. `waiting_for_slot` are the coroutines that found all slots taken."""

    node: int
    node_name: str
    state: str
    in_flight: int
    requests: tuple[NbdRequest, ...]
    waiting_for_slot: tuple[int, ...]
    send_lock: CoLock | None
    receive_lock: CoLock | None
    reconnect_delay_s: int
    export: str


class MonitorState(msgspec.Struct, frozen=True, kw_only=True):
    """A Monitor: what waits to be read by its client, and which requests wait to be run."""

    address: int
    is_qmp: bool
    suspend_count: int
    unread_bytes: int | None
    queued_requests: int | None
