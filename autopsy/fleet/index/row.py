"""One row of the index: what a diagnosed bundle says without a name of anybody."""

from __future__ import annotations

import msgspec


class FleetRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one analyzer says of one bundle; `error` says why it says nothing, and all else is empty then.

    `bundle` is the file's SHA-256, `stamp` says which file it was (name, size, version), `source` its name where that
    was asked for. `host` is a pseudonym. `objects` counts kinds of objects. `since_seconds` is for how long the disk
    that is silent the longest was so. `cluster` is what captures of one mechanism have in common; the stacks' hashes
    are those of build-id and offsets, and those of the functions' names. `looks` says of how many moments there is
    evidence; `undecided` counts signatures that could be neither shown nor ruled out. `seconds` is what the diagnosis
    took.
    """

    bundle: str
    stamp: str
    size: int
    analyzer: str
    source: str = ""
    error: str = ""
    time: str | None = None
    host: str = ""
    manager: str = ""
    program: str = ""
    qemu_version: str = ""
    build_id: str = ""
    kernel: str = ""
    distribution: str = ""
    where: str = ""
    signature: str = ""
    confidence: str = ""
    secondary: tuple[str, ...] = ()
    objects: dict[str, int] = {}
    since_seconds: float | None = None
    cluster: str = ""
    stacks_raw: tuple[str, ...] = ()
    stacks_named: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    trigger: str = ""
    symbols: str = ""
    looks: int = 0
    undecided: int = 0
    seconds: float = 0.0


# Each column as DuckDB is told to read it; the order is that of the files.
COLUMNS = (
    ("bundle", "VARCHAR"),
    ("stamp", "VARCHAR"),
    ("size", "BIGINT"),
    ("analyzer", "VARCHAR"),
    ("source", "VARCHAR"),
    ("error", "VARCHAR"),
    ("time", "TIMESTAMP"),
    ("host", "VARCHAR"),
    ("manager", "VARCHAR"),
    ("program", "VARCHAR"),
    ("qemu_version", "VARCHAR"),
    ("build_id", "VARCHAR"),
    ("kernel", "VARCHAR"),
    ("distribution", "VARCHAR"),
    ("where", "VARCHAR"),
    ("signature", "VARCHAR"),
    ("confidence", "VARCHAR"),
    ("secondary", "VARCHAR[]"),
    ("objects", "MAP(VARCHAR, BIGINT)"),
    ("since_seconds", "DOUBLE"),
    ("cluster", "VARCHAR"),
    ("stacks_raw", "VARCHAR[]"),
    ("stacks_named", "VARCHAR[]"),
    ("drivers", "VARCHAR[]"),
    ("trigger", "VARCHAR"),
    ("symbols", "VARCHAR"),
    ("looks", "INTEGER"),
    ("undecided", "INTEGER"),
    ("seconds", "DOUBLE"),
)
