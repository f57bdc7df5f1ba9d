"""A process of our own that sleeps in the kernel, as a wedged VM's threads do: what is tried harms nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.linux.tasks.forking import end, fork_orphan


@contextmanager
def sleeping_process() -> Iterator[int]:
    """Yield the PID of a process that ends when the block does, or when we die.

    It is no descendant of ours, for Yama lets anybody trace those. It waits for a pipe that we hold the other end of.

    Raises:
        OSError: no process could be started.

    Concurrency: call it only from a process with one thread.
    """
    asleep = fork_orphan(lambda ends: len(os.read(ends.hears, 1)))
    try:
        yield asleep.pid
    finally:
        end(asleep, answered=True)
