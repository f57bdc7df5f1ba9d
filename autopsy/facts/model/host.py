"""The typed facts about what surrounds QEMU: its descriptors, the programs it talks to, rings, the host."""

from __future__ import annotations

from typing import Literal

from autopsy.bundle.other_programs import Kind
from autopsy.bundle.records import AioRing, UringState
from autopsy.dataclass import dataclass
from autopsy.facts.cite import Cite, Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One open file descriptor. `counter` is an eventfd's count, `socket` a socket's inode.

    `device` (major:minor of its mount) and `inode` tell which file it is, as far as the kernel shows them.
    """

    fd: int
    kind: Literal["file", "block device", "socket", "eventfd", "epoll", "timerfd", "io_uring", "kvm", "pipe", "other"]
    target: str
    counter: int | None = None
    socket: int | None = None
    polled_by: tuple[int, ...] = ()
    device: str = ""
    inode: int = 0
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerThread:
    """One thread of such a program, at the one moment at which it was looked at."""

    tid: int
    state: str
    wchan: str
    call: str
    kernel_stack: tuple[str, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFact:
    """A program on this host that the VM depends on, as /proc told of it; `threads` are the first few dozen of it.

    `servers` are those to which it has made a connection itself: it may wait for them.
    """

    pid: int
    comm: str
    state: str
    wchan: str
    kernel_stack: tuple[str, ...]
    cite: Cite
    threads: tuple[PeerThread, ...] = ()
    servers: tuple[PeerFact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFact:
    """One socket of the process, or a pipe that it shares with another.

    Queues are bytes: what the VM has not read, and what the other end has not. Of one that nobody has `accepted` the
    peers are those that listen.
    """

    fd: int
    inode: int
    family: Literal["unix", "tcp", "other", "pipe"]
    state: str
    local: str
    remote: str
    received_queue: int | None
    send_queue: int | None
    peers: tuple[PeerFact, ...]
    cite: Cite
    accepted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A program that one of the VM's devices hands its work to; QEMU holds none of a vhost-user disk's requests.

    `connected` is what QEMU itself says of the connection to it.
    """

    kind: str
    device: str
    model: str
    address: str
    sockets: tuple[SocketFact, ...]
    connected: Fact[bool]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseMount:
    """A FUSE file system that the VM has files on; `sure` says whether the daemons are known to be its own."""

    path: str
    waiting: int
    sure: bool
    daemons: tuple[PeerFact, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerFact:
    """A program that listens at the path of a UNIX socket: `waiting` connections of `room` it has not accepted."""

    path: str
    waiting: int
    room: int
    pid: int
    comm: str
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class FifoOpeningFact:
    """A FIFO that a thread of the VM is in open(2) of, and the programs that are in open(2) of its other end."""

    tid: int
    path: str
    peers: tuple[PeerFact, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWaitFact:
    """A thread of the VM that waits in the kernel for another process, and those that it can be waiting for."""

    tid: int
    kind: Kind
    peers: tuple[PeerFact, ...]
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingFileFact:
    """A file that the VM has open, and that answers with an error at once: ENOTCONN where its server is gone."""

    path: str
    error: str
    cite: Cite


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFact:
    """A loop device below the file system of that number (`above`), the file of the host's that it keeps its data in.

    `mount` is what that file lies on.
    """

    above: str
    loop: str
    file: str
    mount: MountFact
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
    """One block device of the host: `number` is MAJOR:MINOR, and `fds` are those of the VM that are the device itself.

    Both are empty where nothing tells them.
    """

    name: str
    in_flight: int
    suspended: bool
    cite: Cite
    number: str = ""
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFact:
    """One mount that the VM has files on; `upper` is the folder that an overlay's files are written to."""

    path: str
    fstype: str
    source: str
    cite: Cite
    device: str = ""
    upper: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredDisk:
    """A disk as its manager has it: QEMU's id of the device, the manager's name of it, and its options (Proxmox VE)."""

    device: str
    name: str
    options: str = ""


@dataclass(frozen=True, slots=True)
class IoLimit:
    """One limit that a control group of the VM's puts on a block device, given as major:minor, per second."""

    device: str
    kind: Literal["read", "write"]
    unit: Literal["bytes", "requests"]
    value: int
    group: str
    cite: Cite


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit on memory, in bytes, that a control group of the VM's has reached; `file` sets it.

    A memory.high only slows down whoever goes beyond it. What is used may be files' pages, which are
    given up where others are wanted: a group at its limit is no trouble by itself.
    """

    file: str
    group: str
    used: int
    limit: int
    cite: Cite


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log that speaks of storage, memory or this VM.

    `at_seconds` is its time since the host's boot, None where it tells none.
    """

    text: str
    cite: Cite
    at_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host and the VM's control group."""

    cgroup: Fact[str]
    frozen: Fact[bool]
    cpu_limited: Fact[int]
    pressure_cpu: Fact[Pressure]
    pressure_io: Fact[Pressure]
    pressure_memory: Fact[Pressure]
    memory_limits: Fact[tuple[MemoryLimit, ...]]
    io_limits: Fact[tuple[IoLimit, ...]]
    aio_in_use: Fact[tuple[int, int]]
    block_devices: Fact[tuple[BlockDevice, ...]]
    mounts: Fact[tuple[MountFact, ...]]
    log: tuple[LogLine, ...]
    vm_log: tuple[LogLine, ...]
