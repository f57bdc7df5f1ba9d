"""Diagnoses one chunk of bundles in a process of its own, and puts their rows into one part of the index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec

from autopsy.errors import AutopsyError, DamagedBundle
from autopsy.files.scratch_place import scratch_place
from autopsy.fleet.engine.chunk_process import lines_of
from autopsy.fleet.engine.order import ChildEnd, ChildOrder, ChunkDone, ChunkOrder
from autopsy.fleet.index import parts
from autopsy.fleet.index.row import FleetRow
from autopsy.fleet.places.backoff import patiently
from autopsy.fleet.places.fetch import fetch
from autopsy.fleet.places.opening import open_place
from autopsy.fleet.places.sources import SourceBundle
from autopsy.linux import environment

SPARE_SECONDS = 120.0  # for what a chunk costs beside its bundles
MAIN = "import json,sys;sys.path[:]=json.loads(sys.argv[1]);from autopsy.fleet.engine.chunk_process import main;main()"


class ChunkFailed(AutopsyError):
    """The process that diagnosed a chunk ended without its rows: nothing is in the index of it."""


def run_encoded(order: bytes) -> bytes:
    """Do as `run_chunk` does, with JSON in and out, errors too: for engines that carry nothing but bytes."""
    try:
        done = run_chunk(msgspec.json.decode(order, type=ChunkOrder))
    except AutopsyError as error:
        done = ChunkDone(part="", rows=0, errors=0, cpu=0.0, written=False, failed=str(error))
    return msgspec.json.encode(done)


def run_chunk(order: ChunkOrder) -> ChunkDone:
    """Diagnose the bundles, write their part, and say how that went. Doing it twice is doing it once.

    Raises:
        ChunkFailed: a process of ours was ended from outside.
        AutopsyError: the place takes no part.
    """
    rows, cpu = _rows(order)
    part = parts.name_of(order.analyzer, rows)
    with tempfile.TemporaryDirectory(prefix="autopsy-fleet-", dir=scratch_place()) as folder:
        file = parts.write(rows, Path(folder))
        written = patiently(lambda: open_place(order.into).put_new(part, file))
    return ChunkDone(part=part, rows=len(rows), errors=sum(bool(row.error) for row in rows), cpu=cpu, written=written)


def diagnose_one(path: Path) -> FleetRow:
    """Return the row of one bundle, which goes into no index.

    Raises:
        DamagedBundle: it cannot be diagnosed.
        ChunkFailed: a process of ours was ended from outside.
    """
    bundle = SourceBundle(name=str(path.absolute()), size=0, version="", stamp="0")
    ((row,), _) = _rows(ChunkOrder(bundles=(bundle,), into="", analyzer=""))
    if row.error:
        raise DamagedBundle(str(path), row.error, remedy="`autopsy verify` tells whether it is whole")
    return row


def _rows(order: ChunkOrder) -> tuple[list[FleetRow], float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autopsy-fleet-", dir=scratch_place())))
        fetched = [patiently(partial(fetch, bundle, folder, order.identity)) for bundle in order.bundles]
        here = [index for index, copy in enumerate(fetched) if not copy.error]
        diagnosed, cpu = _diagnosed(order, tuple(str(fetched[index].path) for index in here)) if here else ({}, 0.0)
    rows = {here[number]: row for number, row in diagnosed.items()}
    for index, copy in enumerate(fetched):
        if copy.error:
            rows[index] = FleetRow(bundle="", stamp="", size=0, analyzer="", error=copy.error)
    return [_whose(rows[index], bundle, order) for index, bundle in enumerate(order.bundles)], cpu


def _whose(row: FleetRow, bundle: SourceBundle, order: ChunkOrder) -> FleetRow:
    """Say in a row which file it is of, and hold the file against its name where that is its digest."""
    row = msgspec.structs.replace(
        row, stamp=bundle.stamp, size=bundle.size, analyzer=order.analyzer, source=bundle.name if order.named else ""
    )
    digest = parts.digest_in(bundle.name)
    if not digest or row.bundle == digest or not row.bundle:
        return msgspec.structs.replace(row, bundle=digest) if digest and not row.bundle else row
    return FleetRow(
        bundle=row.bundle,
        stamp=row.stamp,
        size=row.size,
        analyzer=row.analyzer,
        source=row.source,
        error="it is not the file whose digest is its name",
    )


def _diagnosed(order: ChunkOrder, paths: tuple[str, ...]) -> tuple[dict[int, FleetRow], float]:
    child = ChildOrder(
        paths=paths, jobs=order.jobs, seconds=order.seconds, memory=order.memory, host_key=order.host_key
    )
    most = SPARE_SECONDS + len(paths) * order.seconds / order.jobs
    python_path = json.dumps([path for path in sys.path if os.path.isabs(path)])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", MAIN, python_path],
            input=msgspec.json.encode(child),
            stdout=subprocess.PIPE,
            timeout=most,
            check=True,
            env=environment.ours(),
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ChunkFailed("the process that diagnosed", str(error), remedy="say the same again: it goes on") from error
    rows = dict(lines_of(done.stdout))
    if len(rows) != len(paths):
        raise ChunkFailed("the process that diagnosed", "left rows out", remedy="say the same again: it goes on")
    try:
        return rows, msgspec.json.decode(done.stdout.splitlines()[-1], type=ChildEnd).cpu
    except msgspec.MsgspecError as error:
        raise DamagedBundle("the process that diagnosed", str(error), remedy="say the same again") from error
