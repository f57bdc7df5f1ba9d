"""The record of a thread that waits in open(2) of a FIFO, and of whoever opens its other end."""

from __future__ import annotations

import msgspec


class FifoOpening(msgspec.Struct, frozen=True, kw_only=True):
    """A FIFO that a thread of the VM is in open(2) of, and the processes that are in open(2) of its other end.

    Such a process has no descriptor of it yet: one that is stopped there keeps the VM's thread waiting.
    """

    tid: int
    path: str
    peer_pids: tuple[int, ...] = ()
