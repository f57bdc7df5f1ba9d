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
    open_to_all = {each.address for each in scene.target.record.monitors if not each.waits}
    try:
        polls = msgspec.json.decode(scene.earlier(layout.WITNESS, layout.POLLS), type=tuple[PollSet, ...])
        listening = {each.inode: each.path for each in listeners_seen_by(pid)}
    except (msgspec.MsgspecError, OSError):
        return frozenset()
    polled = next((each.fds for each in polls if each.tid == pid), ())
    found = set()
    for each in polled:
        inode = socket_of(pid, each.fd)
        if inode in listening:
            found.add(listening[inode])
        elif _link(pid, each.fd) != EVENTFD:
            return frozenset()
    return frozenset(found - open_to_all)


def _link(pid: int, fd: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    return ""
