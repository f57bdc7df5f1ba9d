"""Opens the binary and the libraries of a living process, as the process has them mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from autopsy.examine.core.inputs import LiveMapping
from autopsy.linux.files import open_below
from autopsy.linux.regular import open_regular
from autopsy.linux.tasks.priority import Unpreempted

MOST_FILES = 1024
ELF = b"\x7fELF"


@contextmanager
def mapped(pid: int, maps: bytes) -> Iterator[tuple[LiveMapping, ...]]:
    """Yield what could be opened of what `maps` calls executable. The paths are good until the block ends."""
    with ExitStack() as stack:
        files = []
        for start, end, path in _beginnings(maps):
            for source, descriptor in _opened(pid, start, end, path):
                stack.callback(os.close, descriptor)
                files.append(LiveMapping(start, Path(f"/proc/{os.getpid()}/fd/{descriptor}"), source))
        yield tuple(files)


def _beginnings(maps: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield where each file begins that is mapped to be run: a guest's memory may be a file as well."""
    rows = [row for line in maps.splitlines() if len(row := line.split(None, 5)) == 6 and row[5].startswith(b"/")]
    run = {row[5] for row in rows if b"x" in row[1]}
    beginnings = [row for row in rows if row[5] in run and not int(row[2], 16)]
    for row in beginnings[:MOST_FILES]:
        start, _, end = row[0].partition(b"-")
        yield int(start, 16), int(end, 16), os.fsdecode(row[5]).removesuffix(" (deleted)")


def _opened(pid: int, start: int, end: int, path: str) -> Iterator[tuple[str, int]]:
    """Yield descriptors of the file, the truest first; only root may have the first."""
    ways: tuple[tuple[str, Callable[[], int]], ...] = (
        ("process", partial(open_regular, f"/proc/{pid}/map_files/{start:x}-{end:x}")),
        ("process's root", partial(_below, pid, path)),
        ("process's exe", partial(open_regular, f"/proc/{pid}/exe")),
    )
    for source, way in ways:
        with suppress(OSError):
            with Unpreempted():  # map_files takes the lock of the memory map
                descriptor = way()
            if os.pread(descriptor, len(ELF), 0) != ELF:
                os.close(descriptor)
                continue
            yield source, descriptor
            if source == ways[0][0]:
                return


def _below(pid: int, path: str) -> int:
    there = open_below(f"/proc/{pid}/root", path, os.O_PATH)
    try:
        return open_regular(f"/proc/self/fd/{there}")
    finally:
        os.close(there)
