"""What is to be diagnosed together, and what became of it: plain data that any engine can carry."""

from __future__ import annotations

import msgspec

from autopsy.fleet.places.sources import SourceBundle

SECONDS = 30.0  # for one bundle
MEMORY = 1 << 30  # of address space for one bundle, beyond what its process starts with


class ChunkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Bundles to be diagnosed, and the place that one part of the index is put into.

    `named` keeps each file's name in its row. `identity` is a file with an age key. `host_key` is hexadecimal.
    """

    bundles: tuple[SourceBundle, ...]
    into: str
    analyzer: str
    jobs: int = 1
    seconds: float = SECONDS
    memory: int = MEMORY
    host_key: str = ""
    named: bool = False
    identity: str = ""


class ChunkDone(msgspec.Struct, frozen=True, kw_only=True):
    """One part that is in its place. `written` is false where it was there already.

    `cpu` are seconds of all cores. `failed` says why there is no part.
    """

    part: str
    rows: int
    errors: int
    cpu: float
    written: bool
    failed: str = ""


class ChildOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is told that diagnoses a chunk: the files by their paths, in order."""

    paths: tuple[str, ...]
    jobs: int
    seconds: float
    memory: int
    host_key: str


class ChildEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of that process: the seconds of all cores that it took."""

    cpu: float
