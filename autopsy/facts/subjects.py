"""What a diagnosis speaks of, as values that are compared by equality.

Fields that do not identify a subject, but help people to know it again, take no part in the comparison.
"""

from __future__ import annotations

from dataclasses import field

from autopsy.dataclass import dataclass
from autopsy.facts.model import facts
from autopsy.facts.model.facts import Park, Role


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of the guest; `drive` is the block backend's name where that is another."""

    name: str
    drive: str = ""


@dataclass(frozen=True, slots=True)
class Export:
    """One export of a storage daemon, which is a disk to its clients; `node` is the block node that it gives away."""

    id: str
    node: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the guest that is no disk of QEMU's block layer, or a controller of several."""

    name: str


@dataclass(frozen=True, slots=True)
class Driver:
    """One block driver, in its node."""

    node: str
    driver: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request, by the address of the coroutine that carries it."""

    coroutine: int


@dataclass(frozen=True, slots=True)
class Place:
    """A place where requests yield, with what they wait for there as far as that is known."""

    park: Park
    of: frozenset[Subject] = frozenset()


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kind of wait in the host's kernel, and the file system that it is for; empty where nobody knows one."""

    wait: str
    on: str = ""


@dataclass(frozen=True, slots=True)
class ThrottleGroup:
    """One throttle group."""

    name: str


@dataclass(frozen=True, slots=True)
class Job:
    """One block job."""

    id: str


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread of QEMU's process, or a kernel worker in it."""

    tid: int
    comm: str = field(default="", compare=False)
    role: Role = field(default=Role.OTHER, compare=False)


@dataclass(frozen=True, slots=True)
class Lock:
    """One mutex; `within` is the object of QEMU's that it lies in, as far as that is known."""

    address: int
    within: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition variable, a semaphore or an event; `within` is the function of QEMU's that waits for it."""

    address: int
    within: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Process:
    """QEMU's process."""

    pid: int


@dataclass(frozen=True, slots=True)
class Tracer:
    """The process that traces QEMU."""

    pid: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A program on this host that the VM depends on."""

    pid: int
    comm: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Server:
    """The other end of a connection, by its address."""

    address: str


@dataclass(frozen=True, slots=True)
class File:
    """One file of the host, by its path."""

    path: str


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One mounted file system of the host, by the place where it is mounted."""

    path: str
    fstype: str = field(default="", compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One block device of the host."""

    name: str


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One control group of the host."""

    path: str


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """The VM as a whole."""

    name: str


@dataclass(frozen=True, slots=True)
class Migration:
    """The VM's migration: there is one at a time."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """The VM's monitor."""

    vm: str


@dataclass(frozen=True, slots=True)
class MonitorClient:
    """Whoever is connected to the monitor."""

    name: str


Volume = Disk | Export  # what a request can be of
Subject = (
    Disk
    | Export
    | Device
    | Driver
    | Request
    | Place
    | Kernel
    | ThrottleGroup
    | Job
    | Thread
    | Lock
    | Condition
    | Process
    | Tracer
    | Peer
    | Server
    | File
    | FileSystem
    | HostDevice
    | ControlGroup
    | VirtualMachine
    | Migration
    | Monitor
    | MonitorClient
)


def disk(fact: facts.DiskFact) -> Volume:
    """Return a disk, or an export, as a subject."""
    if fact.is_export:
        return Export(fact.name, fact.nodes[0].name if fact.nodes else "")
    return Disk(fact.name, "" if fact.backend == fact.name else fact.backend)


def thread(fact: facts.ThreadFact) -> Thread:
    """Return a thread as a subject."""
    return Thread(fact.tid, fact.comm, fact.role)


def lock(fact: facts.MutexFact) -> Lock:
    """Return a mutex as a subject."""
    return Lock(fact.address, fact.in_object)


def peer(fact: facts.PeerFact) -> Peer:
    """Return a program that the VM depends on as a subject."""
    return Peer(fact.pid, fact.comm)


def file_system(fact: facts.MountFact) -> FileSystem:
    """Return a mount as a subject."""
    return FileSystem(fact.path, fact.fstype, fact.source)
