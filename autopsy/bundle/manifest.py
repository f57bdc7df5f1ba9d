"""What manifest.json says, as strict types."""

from __future__ import annotations

from typing import Literal

import msgspec

from autopsy.bundle.vm_end import VmEnd

SCHEMA = 1

OutcomeName = Literal["Collected", "TimedOut", "Failed", "Skipped"]
Program = Literal["qemu-system", "qemu-storage-daemon"]
Manager = Literal["proxmox", "libvirt", "process"]
ImpactName = Literal["none", "asks", "asks, may block", "asks, may harm", "stops"]


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """One moment on every clock, so that any two records can be laid side by side.

    `utc` is ISO 8601 with microseconds; `zone` is the host's (`+0300 EEST`); `monotonic_ns` is CLOCK_MONOTONIC,
    the clock that every other time in the bundle is told on.
    """

    utc: str
    zone: str
    monotonic_ns: int


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that the VM ran on."""

    name: str
    kernel: str
    architecture: str
    distribution: str
    page_size: int
    cpus: int
    boot_id: str


class MonitorSocket(msgspec.Struct, frozen=True, kw_only=True):
    """One monitor of the VM as its command line and /proc/net/unix tell of it.

    `address` is a path as QEMU sees it, `host:port`, or an fd number; `reachable` is the path we connect to (through
    /proc/PID/root where the mount namespace differs), empty when it is told but not touched. `waits` says that QEMU may
    wait for its first client before it starts the VM (wait=on, which is what is not told otherwise).
    """

    protocol: Literal["qmp", "hmp"]
    transport: Literal["unix", "tcp", "stdio", "pty", "fd", "other"]
    address: str
    reachable: str = ""
    held_by: str = ""
    waits: bool = True


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """A libvirt domain: what `virsh -c CONNECTION COMMAND --domain=WORD` must be told to mean it and no other.

    `word` is its uuid; its name where there is no knowing better. `connection` is empty where no daemon can be reached
    from here. `root` is the root directory that its daemon's files lie below, such as /proc/4242/root of a container;
    empty for our own. `user` is the uid whose session's daemon it is, where that is not the one that captures: virsh is
    run as that user.
    """

    connection: str
    word: str
    root: str = ""
    user: int | None = None


class TargetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The one process that was captured. `start_ticks` is field 22 of /proc/PID/stat; `domain` is libvirt's alone.

    A qemu-storage-daemon has no guest, no vCPU and no run state: what its exports' clients ask of it is all its work.
    """

    pid: int
    name: str
    manager: Manager
    start_ticks: int
    exe: str
    exe_deleted: bool
    build_id: str
    qemu_version: str
    program: Program = "qemu-system"
    monitors: tuple[MonitorSocket, ...] = ()
    domain: Domain | None = None


class LeftBehind(msgspec.Struct, frozen=True, kw_only=True):
    """A child of ours that could not be ended because it sleeps in the kernel."""

    pid: int
    state: str
    wchan: str


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the plan as it went. Times are CLOCK_MONOTONIC in ns; `stop_ns` is how long the VM stood still.

    `interrupted` says that a person ended it, or ended the capture before it.
    """

    name: str
    impact: ImpactName
    outcome: OutcomeName
    start_ns: int
    end_ns: int
    why: str = ""
    stop_ns: int = 0
    left_behind: tuple[LeftBehind, ...] = ()
    interrupted: bool = False


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle, as `sha256sum` would tell it."""

    path: str
    size: int
    sha256: str


class GivenFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an import as somebody gave it; `stored` is where its bytes lie in the bundle, empty for nowhere."""

    name: str
    what: str
    size: int
    sha256: str
    stored: str = ""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """Where the evidence comes from that others took. `whole` says that it is a core, in which nothing is left out.

    `crash` says by which signal QEMU ended, in which thread, and what it asserted; empty for one that lived on.
    """

    files: tuple[GivenFile, ...]
    whole: bool = False
    crash: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The first file of every bundle. Unknown fields are ignored, so that newer minor additions still open.

    `end` is how the VM ended by itself during its capture, null where it lived on. `imported` is null for a capture.
    """

    schema: int
    autopsy: str
    options: tuple[str, ...]
    began: Clocks
    ended: Clocks
    host: Host
    target: TargetRecord
    steps: tuple[StepRecord, ...]
    notes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()
    end: VmEnd | None = None
    imported: Imported | None = None


def encode_manifest(manifest: Manifest) -> bytes:
    """Return manifest.json's bytes, indented for eyes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
