"""Tells and sets the weight of a session's own scheduling group, where the kernel makes one of each (sched(7))."""

from __future__ import annotations

from contextlib import suppress

LAST, ORDINARY = b"19", b"0"  # nice values


def nice_of(pid: int | str = "self") -> bytes:
    """Return the nice value of a process's group; that of an ordinary one where there are none."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/autogroup", "rb") as stream:
        return stream.read().split()[-1]
    return ORDINARY


def set_nice(nice: bytes, pid: int | str = "self") -> None:
    """Give a process's group a nice value, as far as the kernel lets us."""
    with suppress(OSError), open(f"/proc/{pid}/autogroup", "wb", buffering=0) as stream:
        stream.write(nice)
