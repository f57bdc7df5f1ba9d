"""The typed facts that a bundle holds: what was seen, where, and nothing about what it means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from autopsy.bundle import heap_records
from autopsy.bundle.records import AioRing, Frame, PollSet, QmpExchange, UringState
from autopsy.facts.cite import Cite, Fact


class Role(Enum):
    """What a thread is for, told by its name, its stack and its system call."""

    MAIN = "main"
    VCPU = "vcpu"
    IOTHREAD = "iothread"
    WORKER = "worker"
    MONITOR = "monitor"
    CALL_RCU = "call_rcu"
    MIGRATION = "migration"
    KERNEL = "kernel"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Syscall:
    """What /proc/TID/syscall said. `number` is absent for a thread that was running or outside a system call."""

    number: int | None
    name: str
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """A thread at one moment, as /proc told of it."""

    state: str
    wchan: str
    syscall: Syscall
    kernel_stack: tuple[str, ...]
    tracer: int
    stop_pending: bool
    cite: Cite
    stack_cite: Cite


@dataclass(frozen=True, slots=True)
class Movement:
    """How far a thread came between the two looks at it, `seconds` apart."""

    seconds: float
    cpu_ns: int
    waited_ns: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One thread of the process; `first` was read before anything was asked of the VM."""

    tid: int
    comm: str
    role: Role
    first: Fact[Exposure]
    again: Fact[Exposure]
    frames: Fact[tuple[Frame, ...]]
    movement: Fact[Movement]


class Park(Enum):
    """Where a coroutine yielded; the value is the words for people."""

    THROTTLE = "waits in a throttle group"
    THROTTLE_LOCK = "waits for a throttle member's own lock, holding the group's"
    DRAINED = "is queued because its disk is drained"
    SERIALISING = "waits for an overlapping request"
    FLUSH_QUEUE = "waits for another flush to end"
    FLUSH = "waits for its flush"
    GRAPH_LOCK = "waits for the block graph lock"
    YIELD_TO_DRAIN = "asked for a drain"
    BLKDEBUG = "is suspended by blkdebug"
    THREADS = "waits for an AIO worker thread"
    LINUX_AIO = "waits for Linux AIO"
    IO_URING = "waits for io_uring"
    NBD_REPLY = "waits for an NBD server's reply"
    NBD_CONNECT = "waits for a connection to an NBD server"
    NBD_SEND = "waits to send to an NBD server"
    NBD_SLOT = "waits for one of 16 NBD slots"
    RBD = "waits for librbd"
    ISCSI = "waits for an iSCSI target"
    NFS = "waits for an NFS server (libnfs)"
    CURL = "waits for an HTTP or FTP server"
    SSH = "waits for an SSH server"
    GLUSTER = "waits for a Gluster volume"
    BLKIO = "waits for libblkio"
    NVME = "waits for a userspace NVMe queue"
    QCOW2_LOCK = "waits for a qcow2 image's lock"
    QCOW2_DEPENDENCY = "waits for another qcow2 allocation"
    QCOW2_THREADS = "waits for a qcow2 crypto or compression thread"
    TASK_POOL = "waits for a task of its pool"
    COPY_BEFORE_WRITE = "waits until a backup has copied the old data"
    COPY_MEMORY = "waits for block-copy memory"
    MIRROR = "waits for a mirror's in-flight slot"
    JOB = "is a job between two steps"
    SLEEP = "sleeps for a time"
    MONITOR_IDLE = "is the monitor, waiting for a question"
    QMP_COMMAND = "runs a QMP command"
    MIGRATION = "waits for migration data"
    PVE_BACKUP = "waits for Proxmox backup"
    NBD_SERVER = "serves an NBD client, waiting for a question"
    CO_MUTEX = "waits for a coroutine mutex"
    OTHER = "waits somewhere this analyzer does not know"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoroutineFact:
    """One parked coroutine. `stuck` says whether it stood at the same place in both exposures."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One block node. `throttle_group` is set for a throttle filter, `server` for a network driver."""

    name: str
    driver: str
    filename: str = ""
    children: tuple[str, ...] = ()
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
    """The completed operations of one disk at one moment."""

    reads: int
    writes: int
    flushes: int
    unmaps: int
    failed: int
    idle_ns: int | None
    cite: Cite

    @property
    def completed(self) -> int:
        """Return every operation that has completed."""
        return self.reads + self.writes + self.flushes + self.unmaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk of the guest, from its device to the node that does the I/O.

    `completed` is how many operations ended between the two exposures; `in_flight` how many QEMU held at the first.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleGroup:
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
class Job:
    """One block job at the first exposure; `progressed` compares it with the second."""

    id: str
    kind: str
    status: str
    current: int
    total: int
    paused: bool
    error: str
    progressed: Fact[int]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class MutexFact:
    """A mutex that somebody waits for; `owner` 0 means that nobody holds it."""

    address: int
    owner: int
    kind: str
    waiters: tuple[int, ...]
    place: str
    name: str
    is_bql: bool
    in_object: str
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks:
    """Who holds and who waits. A cycle of one is a thread that waits for itself."""

    mutexes: tuple[MutexFact, ...]
    cycles: tuple[tuple[int, ...], ...]
    bql_owner: Fact[int]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class MainLoopFact:
    """What the main thread was doing. `ours` is the question of ours that it was working on, if any."""

    tid: int
    state: Literal[
        "idle", "nested poll", "blocked in a system call", "waits for a mutex", "running", "stopped", "unknown"
    ]
    under: str
    waits_on_tid: int
    command: str
    ours: str
    why: str
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One open file descriptor. `counter` is an eventfd's count, `socket` a socket's inode."""

    fd: int
    kind: Literal["file", "block device", "socket", "eventfd", "epoll", "timerfd", "io_uring", "kvm", "pipe", "other"]
    target: str
    counter: int | None = None
    socket: int | None = None
    polled_by: tuple[int, ...] = ()
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program on this host that the VM depends on, as /proc told of it."""

    pid: int
    comm: str
    state: str
    wchan: str
    kernel_stack: tuple[str, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFact:
    """One socket of the process. Queues are bytes: what the VM has not read, and what the other end has not."""

    fd: int
    inode: int
    family: Literal["unix", "tcp", "other"]
    state: str
    local: str
    remote: str
    received_queue: int | None
    send_queue: int | None
    peers: tuple[Peer, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseMount:
    """A FUSE file system that the VM has files on; `sure` says whether the daemons are known to be its own."""

    path: str
    waiting: int
    sure: bool
    daemons: tuple[Peer, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class RingsFact:
    """Completion rings at two moments, as far as both were read."""

    aio: tuple[AioRing, ...]
    aio_again: tuple[AioRing, ...]
    uring: tuple[UringState, ...]
    uring_again: tuple[UringState, ...]
    both: bool
    cite: Cite


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of PSI: the share of the last 10 s in which tasks were stalled, in per cent."""

    some: float
    full: float
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """One block device of the host. `completed` counts between two looks, where there were two."""

    name: str
    in_flight: int
    suspended: bool
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount that the VM has files on."""

    path: str
    fstype: str
    source: str
    cite: Cite


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log that speaks of storage, memory or this VM."""

    text: str
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host and the VM's control group."""

    cgroup: Fact[str]
    frozen: Fact[bool]
    cpu_limited: Fact[int]
    pressure_cpu: Fact[Pressure]
    pressure_io: Fact[Pressure]
    pressure_memory: Fact[Pressure]
    memory_pressed: Fact[str]
    aio_in_use: Fact[tuple[int, int]]
    block_devices: Fact[tuple[BlockDevice, ...]]
    mounts: Fact[tuple[Mount, ...]]
    log: tuple[LogLine, ...]
    vm_log: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True)
class RunState:
    """What query-status said."""

    status: str
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One QMP exchange with the place where it is recorded."""

    exchange: QmpExchange
    again: bool
    cite: Cite

    @property
    def answer(self) -> Any:  # noqa: ANN401 - QEMU's JSON, checked by whoever reads it
        """Return the answer, None when there was none."""
        return self.exchange.answer if self.exchange.outcome == "answered" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorFact:
    """How the QMP monitor behaved. `died_at` is the first question that was never answered."""

    greeting: Fact[str]
    holder: str
    asked: tuple[Asked, ...]
    died_at: Fact[Asked]
    alive: Fact[bool]
    alive_again: Fact[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The moments that every other time is told against, CLOCK_MONOTONIC in ns."""

    began_ns: int
    utc: str
    zone: str
    first_ns: int
    second_ns: Fact[int]
    gap_seconds: float
    stopped_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """Which VM it was."""

    pid: int
    name: str
    manager: str
    qemu_version: str
    build_id: str
    arguments: Fact[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that a bundle tells, ready to be judged."""

    vm: Vm
    times: Times
    threads: Fact[tuple[Thread, ...]]
    coroutines: Fact[tuple[CoroutineFact, ...]]
    disks: Fact[tuple[Disk, ...]]
    throttle_groups: Fact[tuple[ThrottleGroup, ...]]
    jobs: Fact[tuple[Job, ...]]
    locks: Fact[Locks]
    main_loop: Fact[MainLoopFact]
    descriptors: Fact[tuple[Descriptor, ...]]
    polls: Fact[tuple[PollSet, ...]]
    sockets: Fact[tuple[SocketFact, ...]]
    fuse: Fact[tuple[FuseMount, ...]]
    rings: Fact[RingsFact]
    host: HostFacts
    run_state: Fact[RunState]
    run_state_again: Fact[RunState]
    monitor: MonitorFact
    migration: Fact[str]
    symbols: Fact[str]
    heap: Fact[heap_records.Exposure]
    heap_again: Fact[heap_records.Exposure]
