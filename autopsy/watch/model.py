"""What a round of the watch has found: all that metrics, the command line and scripts are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from autopsy.bundle.manifest import Manager
from autopsy.dataclass import dataclass


class StallKind(StrEnum):
    """What stands still."""

    DISK = "disk"  # every request of the VM, and nothing else of it moves either
    REQUEST = "request"  # one request or more, while others move
    MAIN_LOOP = "mainloop"  # it does not come round
    VCPUS = "vcpus"  # kept from running by the BQL
    HOST = "host"  # several VMs within seconds, or requests above a device of the host's that completes none


class WatchState(StrEnum):
    """What the watch can say of a VM at all."""

    WATCHED = "watched"
    UNCLEAR = "unclear"  # it is looked at, but its requests cannot be counted
    UNREADABLE = "unreadable"  # /proc does not answer, or is not ours to read
    PAUSED = "paused"  # by its manager, or not started yet
    MIGRATING = "migrating"
    STOPPED = "stopped"  # by a signal, a debugger or the freezer of its control group
    STARVED = "starved"  # it would run and is given no processor


class CaptureResult(StrEnum):
    """How a capture that the watch had started ended."""

    SEALED = "sealed"
    LIGHT = "light"  # the ring and a look at /proc only
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCapture:
    """How a capture ended; `bundle` is empty where none was sealed."""

    vm: str
    result: CaptureResult
    light: bool = False
    bundle: str = ""
    stop_ms: float = 0.0


class Suppression(StrEnum):
    """Why a capture was not started, or only a light one."""

    EPISODE = "episode"
    VM = "vm"
    HOST = "host"
    RUNNING = "running"  # one at a time
    STORM = "storm"
    NOT_WORSE = "not-worse"  # than the longest of this VM within the high-water mark's window
    STORE = "store"  # no room
    DISABLED = "disabled"  # --no-capture


class MonitorOutcome(StrEnum):
    """What came of asking a VM's monitor what its disks have completed."""

    COUNTED = "counted"
    TAKEN = "taken"  # another client is connected, waits to be, or is its owner: it was not touched
    NONE = "none"  # the VM has no QMP monitor that can be asked
    UNSEEN = "unseen"  # whether it is free cannot be told from here: it was not touched
    LOCKS = "locks"  # the question could block this QEMU: it was not put
    SILENT = "silent"  # no greeting, or no answer
    REFUSED = "refused"  # the connection, or the question
    HUNG = "hung"  # the process of ours that asked


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentDisk:
    """A disk that used to complete requests and has completed none for so long, while the guest goes on.

    `name` is the device's path, or what else QEMU calls it by. The shares are of a processor, what all vCPUs took since
    then, and while it completed requests. A guest that computes looks the same.
    """

    name: str
    seconds: float
    vcpu_share: float
    vcpu_share_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedVm:
    """One VM as the last round left it; what it counts lives as long as the watch does, not as long as the process.

    `name` is the word that the metrics call it by: its VMID or its name, never a PID. `suspect` is a stall that is
    too young to be called one, or one that only a disk's silence shows (`silent_disks`), which is never called one.
    `host_unmoved_seconds` is for how long a device of the host's below its disks has had requests in flight, of
    whoever, and completed none; absent where there is no such device. `monitor_asks` counts what came of asking its
    monitor, where the configuration has it asked.
    """

    name: str
    target: str
    pid: int
    start_ticks: int
    manager: Manager
    domain: str = ""
    vmid: str = ""
    uuid: str = ""
    namespace: str = ""
    qemu_version: str = ""
    state: WatchState = WatchState.WATCHED
    suspect: bool = False
    stalled: StallKind | None = None
    oldest_unmoved_seconds: float = 0.0
    requests_in_flight: int | None = None
    threads_in_d: int = 0
    stalls: Mapping[StallKind, int] = field(default_factory=dict)
    stall_seconds: Mapping[StallKind, float] = field(default_factory=dict)
    captures: Mapping[CaptureResult, int] = field(default_factory=dict)
    last_bundle_at: float | None = None  # seconds since the epoch
    host_unmoved_seconds: float | None = None
    silent_disks: tuple[SilentDisk, ...] = ()
    monitor_asks: Mapping[MonitorOutcome, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one finished round of sampling leaves; whoever serves it reads this alone, never /proc.

    `stall_durations` are of the episodes that have ended, in seconds, since the watch began. `stops_ms` are the stops
    of the captures that it started. `hung_tasks` is kernel.hung_task_detect_count, absent where the kernel has none.
    """

    at: float  # seconds since the epoch
    vms: tuple[WatchedVm, ...] = ()
    stall_durations: tuple[float, ...] = ()
    suppressed: Mapping[Suppression, int] = field(default_factory=dict)
    stops_ms: tuple[float, ...] = ()
    hung_tasks: int | None = None
    store_bytes: int = 0
    store_free_bytes: int = 0
    sample_seconds: float = 0.0
    samples_late: int = 0
