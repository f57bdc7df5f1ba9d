"""The process that diagnoses the files of one chunk, each in a confined child, and prints a row for each."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from autopsy.bundle.reader import open_bundle
from autopsy.errors import AutopsyError
from autopsy.files.plain import NotPlain, open_plain
from autopsy.fleet.engine.analyze import analyze
from autopsy.fleet.engine.order import ChildEnd, ChildOrder
from autopsy.fleet.index.row import FleetRow
from autopsy.linux.tasks.forking import die_with_parent
from autopsy.linux.worker_pool import Done, work_through
from autopsy.text import printable

MOST_ROW = 64 << 10
MOST_ERROR = 300
MANIFEST = "manifest.json"


def serve(order: ChildOrder, write: Callable[[bytes], object]) -> None:
    """Write a line for each file: its number, a space and its row; at the end what that has cost.

    Whatever a file holds, it is a row. What a child says is taken for what it found in the file, and for no more: which
    file that was is said here.
    Concurrency: call it only from a process with one thread.
    """
    paths = tuple(map(Path, order.paths))
    key = bytes.fromhex(order.host_key)
    for done in work_through(
        len(paths),
        lambda index: _work(paths[index], key),
        jobs=order.jobs,
        seconds=order.seconds,
        memory=order.memory,
        readable=paths,
    ):
        row = _checked(done)
        bundle, size = _digest(paths[done.index])
        row = msgspec.structs.replace(row, bundle=bundle, size=size, seconds=round(done.seconds, 4))
        write(f"{done.index} ".encode() + msgspec.json.encode(row) + b"\n")
    spent = os.times()
    cpu = spent.user + spent.system + spent.children_user + spent.children_system
    write(msgspec.json.encode(ChildEnd(cpu=cpu)) + b"\n")


def _work(path: Path, key: bytes) -> bytes:
    try:
        return msgspec.json.encode(analyze(open_bundle(path), key))
    except AutopsyError as error:
        return msgspec.json.encode(_failed(error.cause))


def _failed(why: str) -> FleetRow:
    return FleetRow(bundle="", stamp="", size=0, analyzer="", error=printable(why, MOST_ERROR) or "no reason was given")


def _checked(done: Done) -> FleetRow:
    if done.error:
        return _failed(done.error)
    if len(done.answer) > MOST_ROW:
        return _failed("its row is larger than any can be")
    try:
        return msgspec.json.decode(done.answer, type=FleetRow)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _failed(f"what read it answered nonsense: {error}")


def _digest(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and size: of a folder, those of its manifest, which holds the digests of all the rest."""
    try:
        with open(open_plain(path / MANIFEST if path.is_dir() else path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), os.fstat(stream.fileno()).st_size
    except (OSError, NotPlain):
        return "", 0


def lines_of(data: bytes) -> Iterator[tuple[int, FleetRow]]:
    """Yield the rows that such a process printed, with the numbers of their files."""
    for line in data.splitlines()[:-1]:
        number, _, row = line.partition(b" ")
        yield int(number), msgspec.json.decode(row, type=FleetRow)


def main() -> None:
    """Do what stdin says, as long as whoever started this is there."""
    die_with_parent()
    serve(msgspec.json.decode(sys.stdin.buffer.read(), type=ChildOrder), sys.stdout.buffer.write)
    sys.stdout.buffer.flush()
