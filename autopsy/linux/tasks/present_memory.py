"""Reads of another process's memory what takes no fault: a page that was swapped out may be on a stuck disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.linux.mappings import PAGE, MappedProcess
from autopsy.linux.tasks.pagemap import IN_MEMORY, runs


def open_memory(pid: int, path: str) -> MappedProcess:
    """Take hold of a process's memory by the path of its /proc; `close_memory` lets go.

    Raises:
        OSError: it is gone, or not ours to look at.
    """
    memory = os.open(f"{path}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return MappedProcess(pid, memory, os.open(f"{path}/pagemap", os.O_RDONLY | os.O_CLOEXEC), path)
    except OSError:
        os.close(memory)
        raise


def close_memory(process: MappedProcess) -> None:
    """Let go of a process's memory."""
    os.close(process.memory)
    os.close(process.pagemap)


@contextmanager
def opened_memory(pid: int, path: str) -> Iterator[MappedProcess]:
    """Hold a process's memory for as long as the block lasts; it raises as `open_memory` does."""
    process = open_memory(pid, path)
    try:
        yield process
    finally:
        close_memory(process)


def read_present(process: MappedProcess, address: int, size: int) -> bytes:
    """Return the bytes from `address` on as far as their pages are in memory; never raises, not for any address."""
    start, end = address & -PAGE, -(-(address + size) // PAGE) * PAGE
    try:
        present = next(runs(process.pagemap, start, end, IN_MEMORY), None)
        if present is None or present[0] != start:
            return b""
        return os.pread(process.memory, min(address + size, sum(present)) - address, address)
    except (OSError, OverflowError, ValueError):
        return b""


def read_present_below(process: MappedProcess, top: int, size: int) -> bytes:
    """Return the bytes of whole pages that end at `top`, as far down as they are in memory; it never raises either."""
    try:
        present = list(runs(process.pagemap, top - size, top, IN_MEMORY))
    except (OSError, OverflowError, ValueError):
        return b""
    if not present or sum(present[-1]) != top:
        return b""
    return read_present(process, *present[-1])
