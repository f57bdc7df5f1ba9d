"""The record of a thread whose call another process must end: a child, a watcher, a supervisor, a lease's holder."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["child", "watcher", "supervisor", "lease", "automounter"]


class ProcessWait(msgspec.Struct, frozen=True, kw_only=True):
    """A thread of the VM that waits in the kernel for other processes, and those that it can be waiting for.

    `child`: in wait4 or waitid, for one of its children. `watcher`: for whoever marked a file by fanotify, as a virus
    scanner does. `supervisor`: for who decides on its system calls (seccomp's user notification).
    `lease`: for whoever holds a lease on the file that it opens. `automounter`: for who mounts what it names (autofs).
    """

    tid: int
    kind: Kind
    peer_pids: tuple[int, ...] = ()
