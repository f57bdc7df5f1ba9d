"""Tells where a QEMU waits for its first client before it starts the VM: whoever connects there starts it."""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import PollSet
from autopsy.capture.step import Scene
from autopsy.linux.unix_sockets import listeners_seen_by, socket_of

EVENTFD = "anon_inode:[eventfd]"


def awaited(scene: Scene) -> frozenset[str]:
    """Return the paths of the UNIX sockets that the main thread polls, where it polls nothing else but its wake-up.

    A QEMU whose loop runs always polls more: the descriptor of its signals. Nobody is waited for on a monitor whose own
    option says wait=off.
    """
    pid = scene.target.pid
    open_to_all = {monitor.address for monitor in scene.target.record.monitors if not monitor.waits}
    try:
        polls = msgspec.json.decode(scene.earlier(layout.WITNESS, layout.POLLS), type=tuple[PollSet, ...])
        listening = {listener.inode: listener.path for listener in listeners_seen_by(pid)}
    except (msgspec.MsgspecError, OSError):
        return frozenset()
    polled = next((poll.fds for poll in polls if poll.tid == pid), ())
    paths = set()
    for polled_fd in polled:
        inode = socket_of(pid, polled_fd.fd)
        if inode in listening:
            paths.add(listening[inode])
        elif _link(pid, polled_fd.fd) != EVENTFD:
            return frozenset()
    return frozenset(paths - open_to_all)


def _link(pid: int, fd: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    return ""
