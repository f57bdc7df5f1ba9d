"""The typed facts that a bundle holds: what was seen, where, and nothing about what it means."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import field
from enum import Enum
from typing import Any, Literal

from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.manifest import Program
from autopsy.bundle.records import Frame, PollSet, QmpExchange, ThreadStack
from autopsy.bundle.ring import Ring
from autopsy.bundle.syscalls import ARGUMENTS
from autopsy.bundle.vm_end import VmEnd
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact, Unknown
from autopsy.facts.model.host import (
    BlockDevice,
    ConfiguredDisk,
    Descriptor,
    FailingFileFact,
    FifoOpeningFact,
    FuseMount,
    Helper,
    HostFacts,
    IoLimit,
    LayerFact,
    ListenerFact,
    LogLine,
    MountFact,
    PeerFact,
    PeerThread,
    Pressure,
    ProcessWaitFact,
    RingsFact,
    SocketFact,
)
from autopsy.facts.model.left_out import LeftOutFact
from autopsy.facts.model.storage import (
    BlockStats,
    CoroutineFact,
    DiskFact,
    JobFact,
    Limits,
    Node,
    Park,
    Queues,
    ThrottleGroupFact,
)

__all__ = [
    "Asked",
    "BlockDevice",
    "BlockStats",
    "CoMutexFact",
    "ConfiguredDisk",
    "CoroutineFact",
    "Descriptor",
    "DiskFact",
    "EndFact",
    "Facts",
    "FailingFileFact",
    "FifoOpeningFact",
    "FuseMount",
    "Helper",
    "HostFacts",
    "IoLimit",
    "JobFact",
    "LayerFact",
    "Limits",
    "ListenerFact",
    "Locks",
    "LogLine",
    "MainLoopFact",
    "MonitorFact",
    "MountFact",
    "Movement",
    "MutexFact",
    "Node",
    "Origin",
    "Park",
    "PeerFact",
    "PeerThread",
    "Pressure",
    "ProcessWaitFact",
    "Queues",
    "RingsFact",
    "Role",
    "RunState",
    "SocketFact",
    "Syscall",
    "ThreadFact",
    "ThreadSnapshot",
    "ThrottleGroupFact",
    "Times",
    "VmFact",
]


class Role(Enum):
    """What a thread is for, told by its name, its stack and its system call."""

    __hash__ = object.__hash__  # an enum's own hashes the name anew each time

    MAIN = "main"
    VCPU = "vcpu"
    IOTHREAD = "iothread"
    WORKER = "worker"
    MONITOR = "monitor"
    CALL_RCU = "call_rcu"
    MIGRATION = "migration"
    KERNEL = "kernel"
    OTHER = "other"


class Origin(Enum):
    """Who took the evidence, and how much of the process it can show."""

    CAPTURE = "our own capture"
    CORE = "a core that others took: one moment of the whole process"
    PASTE = "what others pasted: some of the process"


@dataclass(frozen=True, slots=True)
class Syscall:
    """What /proc/TID/syscall said. `number` is absent for a thread that was running or outside a system call.

    `restarted` says that the call goes on as restart_syscall, for a stop has interrupted it; `name` is the call's own.
    """

    number: int | None
    name: str
    arguments: tuple[int, ...] = ()
    restarted: bool = False

    def is_like(self, other: Syscall) -> bool:
        """Tell whether it is the same call with the same arguments, interrupted by a stop or not."""
        taken = ARGUMENTS.get(self.name)
        return (self.name, self.arguments[:taken]) == (other.name, other.arguments[:taken])


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadSnapshot:
    """A thread at one moment, as /proc told of it; `dumping` says that the kernel writes the core of its process."""

    state: str
    wchan: str
    syscall: Syscall
    kernel_stack: tuple[str, ...]
    tracer: int
    stop_pending: bool
    cite: Cite
    stack_cite: Cite
    dumping: bool = False


@dataclass(frozen=True, slots=True)
class Movement:
    """How far a thread came between two looks, `seconds` apart. Switches are absent where one look lacks them."""

    seconds: float
    cpu_ns: int
    waited_ns: int
    voluntary_switches: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadFact:
    """One thread of the process; `first` was read before anything was asked of the VM. It may have `ended` since."""

    tid: int
    comm: str
    role: Role
    first: Fact[ThreadSnapshot]
    again: Fact[ThreadSnapshot]
    frames: Fact[tuple[Frame, ...]]
    movement: Fact[Movement]
    ended: bool = False


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
class CoMutexFact:
    """A coroutine mutex that requests wait for, by their coroutines' addresses.

    `holder_tid` is the thread that its holder runs on, 0 if that is not known; a knot is a ring of such waits.
    """

    address: int
    holder: int
    holder_state: Literal["parked", "running", "pooled", "gone", "unclear", "handed over"]
    holder_tid: int
    waiters: tuple[int, ...]
    in_knot: bool
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class Locks:
    """Who holds and who waits. A cycle of one is a thread that waits for itself."""

    mutexes: tuple[MutexFact, ...]
    cycles: tuple[tuple[int, ...], ...]
    bql_owner: Fact[int]
    cite: Cite
    comutexes: tuple[CoMutexFact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MainLoopFact:
    """What the main thread was doing. `ours` is the question of ours that it was working on, if any.

    `path` is the file that its system call names.
    """

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
    path: str = ""


@dataclass(frozen=True, slots=True)
class MigrationPace:
    """How many bytes an active migration sent between the looks, in which time, and how many remained then."""

    sent: int
    seconds: float
    remaining: int


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
    """How the QMP monitor behaved. `died_at` is the first question that was never answered.

    `not_asked` says why no question could be put at all; it is empty where one was, or where that is not known.
    """

    greeting: Fact[str]
    holder: str
    asked: tuple[Asked, ...]
    died_at: Fact[Asked]
    alive: Fact[bool]
    alive_again: Fact[bool]
    not_asked: str = ""


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
class EndFact:
    """The end of the process. `last_words` are the last lines of QEMU's log, `left` the files that it left behind."""

    end: VmEnd
    last_words: tuple[LogLine, ...]
    left: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFact:
    """Which VM it was, and how it ended by itself during the capture, where it did.

    `domain` and `connection` are what virsh must be told to mean it; `monitor` is the path of a QMP socket of its that
    can be reached, `monitors` are all of them as QEMU was told: a path, or the number of a descriptor.
    """

    pid: int
    name: str
    manager: str
    qemu_version: str
    program: Program
    build_id: str
    arguments: Fact[tuple[str, ...]]
    started_seconds: float = 0.0
    end: Fact[EndFact]
    domain: str = ""
    connection: str = ""
    monitor: str = ""
    monitors: tuple[str, ...] = ()
    configured_disks: tuple[ConfiguredDisk, ...] = ()

    @property
    def is_storage_daemon(self) -> bool:
        """Return whether it has no guest: its exports' clients are in its place."""
        return self.program == "qemu-storage-daemon"


NOT_BEFORE = Unknown("evidence/watch/ring.jsonl", "no watch had an eye on this VM before")
NOT_ASKED = Unknown("evidence/qmp.query-block/guard.json", "no file of the VM's was asked whether it answers")
NOT_TWICE = Unknown("evidence/second-exposure/sockets.txt", "nobody looked a second time")
NOT_AGAIN = Unknown("evidence/second-exposure/threads.json", "no second look was pasted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that a bundle tells, ready to be judged.

    `crash` says how QEMU crashed before others took this, empty where nothing tells of a crash.
    `before` is what a watch had seen by then.
    `heap_walked` is known where a walk was tried: False says that there was no debug information for it.
    `answers` keeps what was worked out of these facts already, by question: it goes when they go.
    """

    vm: VmFact
    times: Times
    threads: Fact[tuple[ThreadFact, ...]]
    coroutines: Fact[tuple[CoroutineFact, ...]]
    disks: Fact[tuple[DiskFact, ...]]
    nodes: tuple[Node, ...]
    throttle_groups: Fact[tuple[ThrottleGroupFact, ...]]
    jobs: Fact[tuple[JobFact, ...]]
    locks: Fact[Locks]
    main_loop: Fact[MainLoopFact]
    descriptors: Fact[tuple[Descriptor, ...]]
    most_descriptors: Fact[int]
    polls: Fact[tuple[PollSet, ...]]
    sockets: Fact[tuple[SocketFact, ...]]
    fuse: Fact[tuple[FuseMount, ...]]
    layers: tuple[LayerFact, ...]
    helpers: tuple[Helper, ...]
    rings: Fact[RingsFact]
    host: HostFacts
    run_state: Fact[RunState]
    run_state_again: Fact[RunState]
    monitor: MonitorFact
    migration: Fact[str]
    migration_pace: Fact[MigrationPace]
    symbols: Fact[str]
    heap_walked: Fact[bool]
    heap: Fact[heap_records.HeapSnapshot]
    heap_again: Fact[heap_records.HeapSnapshot]
    virtqueues: Fact[Queues]
    origin: Origin = Origin.CAPTURE
    crash: str = ""
    before: Fact[Ring] = NOT_BEFORE
    frames_again: Fact[tuple[ThreadStack, ...]] = NOT_AGAIN
    polls_again: Fact[tuple[PollSet, ...]] = NOT_AGAIN
    left_out: tuple[LeftOutFact, ...] = ()
    sockets_again: Fact[tuple[SocketFact, ...]] = NOT_TWICE
    fuse_again: Fact[tuple[FuseMount, ...]] = NOT_TWICE
    listeners: tuple[ListenerFact, ...] = ()
    fifo_openings: tuple[FifoOpeningFact, ...] = ()
    process_waits: tuple[ProcessWaitFact, ...] = ()
    failing_files: Fact[tuple[FailingFileFact, ...]] = NOT_ASKED
    answers: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
