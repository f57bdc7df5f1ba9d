"""The diagnosis as it is written to diagnosis.json and shown by every report."""

from __future__ import annotations

from typing import Literal

import msgspec

from autopsy.facts.cite import Cite

Where = Literal[
    "guest",
    "device",
    "throttle",
    "block",
    "job",
    "aio",
    "host",
    "peer",
    "migration",
    "control",
    "process",
    "vm-state",
    "none",
    "unknown",
]
Confidence = Literal["proven", "likely", "possible", "consistent"]
KillEffect = Literal["helps", "needless", "futile", "unknown"]
When = Literal["now", "if-not", "never", "later"]
UNKNOWN = "unknown"  # the signature of what none is known for, and of what a limit left out


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence of the evidence chain, and the places that prove it."""

    text: str
    cites: tuple[Cite, ...]


class RuledOutBy(msgspec.Struct, frozen=True, kw_only=True):
    """A signature that is not it. `text` names it in words; `why` says what speaks against it."""

    signature: str
    text: str
    why: str
    cites: tuple[Cite, ...] = ()


class Unproven(msgspec.Struct, frozen=True, kw_only=True):
    """A signature that can be neither shown nor ruled out, and the evidence that would decide."""

    signature: str
    text: str
    missing: str


class Secondary(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong because of the primary cause, or beside it."""

    where: Where
    signature: str
    headline: str
    because_of: str
    cites: tuple[Cite, ...] = ()
    objects: tuple[str, ...] = ()


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One of several that do not wait for one another, with its own objects."""

    where: Where
    signature: str
    headline: str
    objects: tuple[str, ...]


class KnownBug(msgspec.Struct, frozen=True, kw_only=True):
    """A QEMU bug that shows this signature. `in_this_build` never decides a verdict."""

    title: str
    link: str
    affected: str
    fixed_in: tuple[str, ...]
    in_this_build: Literal["fixed", "affected", "not affected", "cannot tell"]
    sentence: str


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One station of a disk's request path. `in_flight` is absent where it could not be counted."""

    kind: Literal["guest", "device", "throttle", "node", "aio", "host", "peer", "job"]
    name: str
    detail: str = ""
    in_flight: int | None = None
    stuck: bool = False
    cites: tuple[Cite, ...] = ()


class PathBranch(msgspec.Struct, frozen=True, kw_only=True):
    """What parts from a path below its `at`th hop: a backup's target, a quorum's other child, a backing image."""

    at: int
    words: str
    hops: tuple[Hop, ...]
    stuck_at: int | None = None


class DiskPath(msgspec.Struct, frozen=True, kw_only=True):
    """Requests from the guest, or a job, down to whoever answers them. `stuck_at` is an index into hops, or absent.

    `disk` is the name of the job, where the `owner` is one.
    """

    disk: str
    hops: tuple[Hop, ...]
    stuck_at: int | None = None
    completed: int | None = None
    sentence: str = ""
    branches: tuple[PathBranch, ...] = ()
    owner: Literal["disk", "job"] = "disk"

    @property
    def is_stuck(self) -> bool:
        """Tell whether the requests are stuck anywhere on the path, its branches included."""
        return any(index is not None for index in (self.stuck_at, *(branch.stuck_at for branch in self.branches)))


class WaitNode(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who waits, or something that is waited for; an `end` waits for nobody that is known."""

    id: str
    kind: Literal["thread", "coroutine", "lock", "resource", "peer"]
    label: str
    detail: str = ""
    cites: tuple[Cite, ...] = ()
    end: bool = False


class WaitEdge(msgspec.Struct, frozen=True, kw_only=True):
    """`waiter` cannot go on before `holder` does something."""

    waiter: str
    holder: str
    label: str
    in_cycle: bool = False


class WaitGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits for whom, without the idle."""

    nodes: tuple[WaitNode, ...] = ()
    edges: tuple[WaitEdge, ...] = ()


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """One of the objects of a diagnosis, for programs: what kind of thing it is, and the same name as in `objects`."""

    kind: str
    name: str


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One command for this very VM, ready for a shell, and why."""

    when: When
    command: str
    why: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Where the I/O is stuck, what proves it, what it is not, and what cannot be told."""

    where: Where
    signature: str
    confidence: Confidence
    headline: str
    objects: tuple[str, ...]
    secondary: tuple[Secondary, ...]
    cites: tuple[Cite, ...]
    ruled_out: tuple[RuledOutBy, ...]
    cannot_tell: tuple[Unproven, ...]
    chain: tuple[Claim, ...]
    next_steps: tuple[str, ...]
    lost_by_kill: tuple[str, ...]
    footprint: tuple[str, ...]
    side_effects: tuple[Claim, ...]
    known_bugs: tuple[KnownBug, ...]
    runbook: str
    paths: tuple[DiskPath, ...]
    waits: WaitGraph
    symbols: str = ""
    subjects: tuple[Named, ...] = ()
    since: str = ""
    causes: tuple[Cause, ...] = ()
    kill: KillEffect = "unknown"
    kill_why: str = ""
    advice: tuple[Advice, ...] = ()
