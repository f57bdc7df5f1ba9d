"""All that was read out of the files of one import, as it leaves the process that read it."""

from __future__ import annotations

import msgspec

from autopsy.bundle.manifest import Manager
from autopsy.incoming.stacks.pasted import Paste


class FileOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one file turned out to be; `of_use` says whether anything was taken from it."""

    what: str
    of_use: bool


class CoreFound(msgspec.Struct, frozen=True, kw_only=True):
    """A core of QEMU: its process, and how it ended, as its notes tell; `signal` is 0 for one that lived on."""

    pid: int
    threads: int
    command: str
    signal: int
    signal_tid: int
    left_out_bytes: int
    truncated: bool
    notes: tuple[str, ...] = ()


class FoundMachine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that is told of in what was given: its command line, its manager's configuration, or both.

    `also` are other words that mean it: a VMID, a uuid. `pid` is 0 where nobody told its process.
    """

    name: str
    pid: int
    arguments: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    manager: Manager = "process"
    config: str = ""


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What the files of one import hold together.

    `files` are pieces of evidence that are ready to be stored, by their path inside the bundle.
    """

    paste: Paste
    seen: tuple[FileOutcome, ...]
    core: CoreFound | None = None
    machines: tuple[FoundMachine, ...] = ()
    files: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    crash: str = ""
    qemu_version: str = ""
