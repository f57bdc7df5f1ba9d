"""The records of other programs that the VM waits for, or that its servers ask in turn."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["child", "watcher", "supervisor", "lease", "automounter"]


class FifoOpening(msgspec.Struct, frozen=True, kw_only=True):
    """A FIFO that a thread of the VM is in open(2) of, and the processes that are in open(2) of its other end.

    Such a process has no descriptor of it yet: one that is stopped there keeps the VM's thread waiting.
    """

    tid: int
    path: str
    peer_pids: tuple[int, ...] = ()


class ProcessWait(msgspec.Struct, frozen=True, kw_only=True):
    """A thread of the VM that waits in the kernel for other processes, and those that it can be waiting for.

    `child`: in wait4 or waitid, for one of its children. `watcher`: for whoever marked a file by fanotify, as a virus
    scanner does. `supervisor`: for who decides on its system calls (seccomp's user notification).
    `lease`: for whoever holds a lease on the file that it opens. `automounter`: for who mounts what it names (autofs).
    """

    tid: int
    kind: Kind
    peer_pids: tuple[int, ...] = ()


class ServerLink(msgspec.Struct, frozen=True, kw_only=True):
    """A connection that a server of the VM's, or a server of that, has made itself; `peer_pids` hold its other end.

    `remote` is a path (`@name` for an abstract one) or address:port.
    """

    pid: int
    remote: str
    peer_pids: tuple[int, ...] = ()
