"""The index on disk: Parquet parts, each written once under a name that its content makes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import msgspec

from autopsy import __version__
from autopsy.files import private
from autopsy.fleet.index.row import COLUMNS, FleetRow

ENDING = ".parquet"
PARTITION = "analyzer="
DIGEST = re.compile(r"(?:^|/)([0-9a-f]{64})\.tar\.zst(?:\.age)?$")
NAME = re.compile(r"analyzer=[A-Za-z0-9._-]{1,64}/part-[0-9a-f]{32}\.parquet")
OF_A_PART = re.compile(r"analyzer=([A-Za-z0-9._-]{1,64}?)[/_]part-[0-9a-f]{32}\.parquet$")
OF_THE_ANALYZER = ("bundle", "facts", "diagnose", "fleet/grouping", "fleet/engine")
ROWS = "rows.json"


@cache
def this_analyzer() -> str:
    """Return the version of this analyzer: the program's, and some letters that change with any line of what judges."""
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.blake2b(digest_size=4)
    for folder in OF_THE_ANALYZER:
        for file in sorted((package / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return f"{__version__}-{digest.hexdigest()}"


def name_of(analyzer: str, rows: Iterable[FleetRow]) -> str:
    """Return the part's key: the same bundles, of which the same could be diagnosed, are the same part."""
    stamps = sorted(f"{row.stamp}{'!' if row.error else ''}" for row in rows)
    digest = hashlib.blake2b("\n".join(stamps).encode(), digest_size=16).hexdigest()
    return f"{PARTITION}{analyzer}/part-{digest}{ENDING}"


def digest_in(name: str) -> str:
    """Return the SHA-256 that a bundle's name gives it, empty where it is named otherwise."""
    match = DIGEST.search(name)
    return match[1] if match else ""


def analyzer_of(part: Path) -> str:
    """Return whose part it is: its folder says so, and in the cache of a bucket its name."""
    match = OF_A_PART.search(str(part))
    return match[1] if match else ""


def write(rows: Iterable[FleetRow], folder: Path) -> Path:
    """Write the rows as one Parquet file of a folder of ours, and return it."""
    import duckdb  # noqa: PLC0415 - nothing else of the index needs it

    lines, file = folder / ROWS, folder / f"part{ENDING}"
    with private.new(lines) as stream:
        stream.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS)
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_json({_text(lines)}, format='newline_delimited', columns={{{columns}}})) "  # noqa: S608 - names of ours
            f"TO {_text(file)} (FORMAT parquet, COMPRESSION zstd)"
        )
    return file


def stamps(files: Sequence[Path], *, errors: bool) -> frozenset[str]:
    """Return which bundles are in these parts; without `errors`, those alone that were diagnosed."""
    import duckdb  # noqa: PLC0415 - likewise

    if not files:
        return frozenset()
    names = ", ".join(map(_text, files))
    only = "" if errors else " WHERE error = ''"
    with duckdb.connect(config={"threads": 1}) as connection:
        stored = connection.execute(
            f"SELECT stamp FROM read_parquet([{names}], hive_partitioning = false){only}"  # noqa: S608 - likewise
        ).fetchall()
    return frozenset(stamp for (stamp,) in stored)


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
