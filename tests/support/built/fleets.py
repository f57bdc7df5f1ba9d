"""Bundles that hurt whoever reads them, and indexes of many bundles."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard

from autopsy.bundle import layout
from autopsy.fleet.engine.diagnose import FleetRun, here, plan
from autopsy.fleet.index.local import local_parts
from autopsy.fleet.index.query import ask
from fleet import many_cases

OF_THE_RUN = ("seconds",)  # columns that no two runs agree on


def command(*words: str | Path, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `autopsy fleet` as a person does."""
    done = subprocess.run(
        [sys.executable, "-m", "autopsy", "fleet", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **more,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def asked(*words: str | Path, code: int = 0, **more: Any) -> Any:
    """Return what a command of `autopsy fleet` answers to a program."""
    return json.loads(command(*words, "--json", code=code, **more).stdout)


def index(into: Path | str, *sources: Path | str, **how: Any) -> Path | str:
    """Diagnose sources into a place."""
    for _ in here(plan(FleetRun(sources=tuple(map(str, sources)), into=str(into), **how)).chunks):
        pass
    return into


def rows(place: Path | str, sql: str = "SELECT * FROM diagnoses ORDER BY stamp") -> list[dict[str, Any]]:
    """Return rows of an index without what no two runs agree on."""
    table = ask(local_parts(str(place)), sql)
    return [
        {name: value for name, value in zip(table.columns, row, strict=True) if name not in OF_THE_RUN}
        for row in table.rows
    ]


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return a bundle of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return zstandard.compress(out.getvalue())


def manifest(**changed: Any) -> bytes:
    """Return the manifest of a stored case, without a list of files."""
    case = next(many_cases.cases())
    return json.dumps({**case.manifest, "files": [], **changed}).encode()


def that_hangs() -> bytes:
    """Return a bundle of some KiB that takes minutes to read: millions of tar's own records, between files."""
    records = b"6 a=b\n" * 160_000
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    block = head.tobuf(tarfile.PAX_FORMAT) + records + b"\0" * (-len(records) % 512)
    members = (block + tarfile.TarInfo(f"evidence/{number}").tobuf(tarfile.PAX_FORMAT) for number in range(400))
    return b"".join(map(zstandard.compress, members)) + zstandard.compress(b"\0" * 1024)


def that_eats_memory() -> bytes:
    """Return a bundle of a few KiB that is hundreds of MiB as Python has it."""
    line = b'{"question":"query-status","outcome":"answered","asked_ns":1,"ms":1,"deadline_ms":1,"answer":['
    greedy = line + b",".join([b"[]"] * 1_500_000) + b"]}\n"
    return archive({layout.MANIFEST: manifest(), layout.evidence(layout.QUERY_STATUS, layout.QMP): greedy})


def bundle(number: int = 1, options: tuple[str, ...] = ()) -> bytes:
    """Return a good bundle, another one for each number, as if it had been taken by this command line."""
    case = next(many_cases.cases())
    return many_cases.bundle_of(replace(case, manifest={**case.manifest, "options": options}), number)


def sha256(data: bytes | Path) -> str:
    """Return a file's digest."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()
