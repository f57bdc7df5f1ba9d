"""Tells who has the one place that a monitor's socket offers, by the kernel's word."""

from __future__ import annotations

import os
import socket

from autopsy.capture import words
from autopsy.capture.unix import clients_of, listeners_seen_by, owners_of, sockets_of


def clients(address: str, pid: int, ours: int = 0) -> tuple[int, ...]:
    """Return the inodes of those who are connected to a socket of the target, but for our own (`ours`).

    Nothing is claimed where the kernel does not let us see. Enters the target's network namespace.
    """
    try:
        return tuple(client for client in clients_of(pid, address) if client != ours)
    except OSError:
        return ()


def names(holding: tuple[int, ...]) -> str:
    """Return whose sockets they are, such as "pvestatd (pid 812)"; empty for none."""
    return ", ".join(_names(client) for client in holding)


def listens(address: str, pid: int) -> bool:
    """Return whether the target itself listens there, so that we never question another program; in doubt it does."""
    own = sockets_of(pid)
    try:
        found = listeners_seen_by(pid)
    except OSError:
        return True
    return not own or any(each.path == address and each.inode in own for each in found)


def inode_of(connection: socket.socket) -> int:
    """Return the inode by which the kernel names a socket of ours."""
    return os.fstat(connection.fileno()).st_ino


def _names(client: int) -> str:
    names = [described(owner) for owner in owners_of(client)]
    return ", ".join(names) or "a process that we cannot see"


def described(pid: int) -> str:
    """Return a process as "pvestatd (pid 812)"."""
    return f"{_comm(pid)} (pid {pid})"


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as stream:
            return words.printable(stream.read(64).strip())
    except OSError:
        return "a process that has ended"
