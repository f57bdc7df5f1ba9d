"""Makes many bundles from the stored cases, with other hosts and times: for what only shows with thousands.

    python tools/fleet/many_cases.py FOLDER 10000

A bundle of these is two zstd frames: its own manifest, and behind it what is the same in all that one case gives.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from autopsy.bundle import layout

HOUSE = Path(__file__).resolve().parents[2]
FIRST = datetime.fromisoformat("2026-01-01T00:00:00.000000+00:00")
MINUTES = 29
HOSTS = 200


@dataclass(frozen=True, slots=True)
class Case:
    """One stored case: what its manifest says, and all the rest of its archive, compressed."""

    name: str
    manifest: Mapping[str, Any]
    rest: bytes


def cases(folder: Path = HOUSE / "fixtures") -> Iterator[Case]:
    for bundle in sorted(folder.glob("*/bundle.tar.zst")):
        with zstandard.open(bundle, "rb") as stream:
            data = stream.read()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            first = tar.next()
            assert first is not None
            assert first.name == layout.MANIFEST
            end = first.offset_data + (first.size + 511) // 512 * 512
            manifest = msgspec.json.decode(data[first.offset_data : first.offset_data + first.size])
        yield Case(bundle.parent.name, manifest, zstandard.compress(data[end:]))


def bundle_of(case: Case, number: int, **target: str) -> bytes:
    """Return the archive of one capture more of a case: at another time, on another host."""
    utc = (FIRST + timedelta(minutes=MINUTES * number)).isoformat(timespec="microseconds")
    manifest = msgspec.json.encode(
        {
            **case.manifest,
            "began": {**case.manifest["began"], "utc": utc},
            "host": {**case.manifest["host"], "name": f"node{number % HOSTS}"},
            "target": {**case.manifest["target"], **target},
        }
    )
    head = tarfile.TarInfo(layout.MANIFEST)
    head.size = len(manifest)
    block = head.tobuf(tarfile.PAX_FORMAT) + manifest + b"\0" * (-len(manifest) % 512)
    return zstandard.compress(block) + case.rest


def make(folder: Path, count: int, of: tuple[Case, ...] = ()) -> tuple[Path, ...]:
    """Write as many bundles as that, a thousand in a folder."""
    known = of or tuple(cases())
    made = []
    for number in range(count):
        case = known[number % len(known)]
        path = folder / f"{number // 1000:03}" / f"autopsy-{case.name}-{number:06}.tar.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle_of(case, number))
        made.append(path)
    return tuple(made)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    print(f"{len(make(given.folder, given.count))} bundles in {given.folder}")
