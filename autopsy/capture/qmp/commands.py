"""Which questions are asked of a QEMU, and which of them can take a lock inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopsy.bundle.manifest import Program

GREETING = "(greeting)"
CAPABILITIES = "qmp_capabilities"
STATUS = "query-status"
VERSION = "query-version"
COMMANDS = "query-commands"
IOTHREADS = "query-iothreads"
BLOCKSTATS = "query-blockstats"
JOBS = "query-jobs"
BLOCK_JOBS = "query-block-jobs"
NAMED_NODES = "query-named-block-nodes"
BLOCK = "query-block"
MIGRATE = "query-migrate"
QOM_LIST = "qom-list"
QOM_GET = "qom-get"
SCHEMA = "query-qmp-schema"

OBJECTS = "/objects"

# They tell what this QEMU is, and with it which of the others only read memory.
FIRST = (STATUS, VERSION, COMMANDS, IOTHREADS, SCHEMA)

# A storage daemon has no run state: what it knows is asked first, and shows that it answers.
DAEMON_FIRST = (COMMANDS, VERSION, STATUS, IOTHREADS, SCHEMA)

# They only read memory, in every version: the main loop and the BQL are all that they need.
MEMORY = (
    "query-name",
    "query-uuid",
    "query-kvm",
    "query-cpus-fast",
    "query-chardev",
    MIGRATE,
    "query-memory-size-summary",
    "query-yank",
    "query-block-exports",
)

# They take the lock of an AioContext in some versions; see `takes_lock`.
COUNTERS = (BLOCKSTATS, JOBS, BLOCK_JOBS)

# Worth a second answer: they move when I/O does, or a migration.
AGAIN = frozenset({STATUS, MIGRATE, *COUNTERS})

# They can take locks and ask the storage.
GUARDED = (NAMED_NODES, BLOCK, QOM_GET)

# All that is ever asked without --ask-unstable.
STABLE = frozenset({*FIRST, *MEMORY, *COUNTERS, *GUARDED, QOM_LIST})

MOST_GROUPS = 64


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """QEMU's version; 0.0.0 when it has not been told, which is older than everything."""

    major: int = 0
    minor: int = 0
    micro: int = 0


@dataclass(frozen=True, slots=True)
class Qemu:
    """What the first answers told. `commands` is empty when it was not told.

    `marked` are those of our questions that its schema says are unstable; empty, too, when it told no schema.
    """

    version: Version = Version()
    commands: frozenset[str] = field(default_factory=frozenset)
    without_iothreads: bool = False
    marked: frozenset[str] = field(default_factory=frozenset)

    def lacks(self, question: str) -> bool:
        """Return whether this QEMU has told that it does not know the question."""
        return bool(self.commands) and question not in self.commands


def first(program: Program) -> tuple[str, ...]:
    """Return the questions that come before all others; an answer to the first of them shows that the loop is alive."""
    return DAEMON_FIRST if program == "qemu-storage-daemon" else FIRST


def takes_lock(question: str, qemu: Qemu) -> str:
    """Return why the question can block the main loop of this QEMU, empty when it only reads memory.

    There is no shape to see this by from outside; the version decides, and an unknown one is taken for old.
    """
    if question == BLOCKSTATS and qemu.version < Version(9) and not qemu.without_iothreads:
        # Since QEMU 9.0 (AioContext lock removal) it takes none; before that, aio_context_acquire() for each device.
        return "before QEMU 9.0 it takes the AioContext lock of every disk"
    if question in {JOBS, BLOCK_JOBS} and qemu.version < Version(7, 2) and not qemu.without_iothreads:
        # Since QEMU 7.2 (job_mutex) it takes only that; before that, the AioContext lock of each job.
        return "before QEMU 7.2 it takes the AioContext lock of every job"
    return ""


def version(answer: Any) -> Version:  # noqa: ANN401 - JSON
    """Return the version inside a greeting or an answer to query-version."""
    match answer:
        case {"QMP": {"version": inner}}:
            return version(inner)
        case {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}:
            return Version(major, minor, micro)
        case _:
            return Version()


def named(answer: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - JSON
    """Yield the objects of a list that have a name."""
    if isinstance(answer, list):
        yield from (entry for entry in answer if isinstance(entry, dict) and isinstance(entry.get("name"), str))


def commands(answer: Any) -> frozenset[str]:  # noqa: ANN401 - JSON
    """Return the names in an answer to query-commands."""
    return frozenset(entry["name"] for entry in named(answer))


def marks(answer: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return what is kept of a schema (200 KB in a real QEMU): its length, and which questions of ours it marks."""
    unstable = {
        entry["name"]
        for entry in named(answer)
        if entry.get("meta-type") == "command"
        and isinstance(features := entry.get("features"), list)
        and "unstable" in features
    }
    return {"entries": len(answer) if isinstance(answer, list) else 0, "unstable": sorted(unstable & STABLE)}


def throttle_groups(answer: Any) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """Return the QOM paths of the throttle-group objects in an answer to qom-list of /objects."""
    names = [entry["name"] for entry in named(answer) if entry.get("type") == "child<throttle-group>"]
    return tuple(f"{OBJECTS}/{name}" for name in names if "/" not in name)
