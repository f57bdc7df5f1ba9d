"""Asks the kernel how a process ended that is not our child."""

from __future__ import annotations

import fcntl
import struct

from autopsy.bundle.vm_end import How
from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.target.target import Target

# ioctl_pidfd(2), since Linux 6.13; PIDFD_INFO_EXIT since 6.15, of a pidfd that was open before the end. It is told once
# the parent has reaped the process.
PIDFD_GET_INFO = (3 << 30) | (72 << 16) | (0xFF << 8) | 11
PIDFD_INFO_EXIT = 1 << 3
INFO = struct.Struct("<Q52xi8x")  # struct pidfd_info: mask, and exit_code in the form of wait(2)
EXIT_CODE = 49  # field 52 of /proc/PID/stat, counted from the state, which is field 3
SIGNAL = 0x7F
CORE = 0x80


@dataclass(frozen=True, slots=True)
class Exit:
    """What the kernel tells of an end: see VmEnd."""

    how: How
    number: int = 0
    core: bool = False


def exit_of(target: Target) -> Exit:
    """Return how the target's process has ended; unknown where this kernel does not tell, or not yet."""
    status = _of_the_reaped(target.pidfd)
    if status is None:
        status = _of_the_zombie(target)
    if status is None:
        return Exit("unknown")
    if number := status & SIGNAL:
        return Exit("signal", number, core=bool(status & CORE))
    return Exit("exit", status >> 8 & 0xFF)


def _of_the_reaped(pidfd: int) -> int | None:
    info = bytearray(INFO.pack(PIDFD_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = INFO.unpack(info)
    return int(status) if mask & PIDFD_INFO_EXIT else None


def _of_the_zombie(target: Target) -> int | None:
    """Return what a process that nobody has waited for yet tells in /proc/PID/stat, to those who may trace it."""
    try:
        fields = read_kernel(f"/proc/{target.pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) <= EXIT_CODE or fields[0] not in {b"Z", b"X"} or int(fields[19]) != target.record.start_ticks:
        return None
    return int(fields[EXIT_CODE])


def dumps_core(target: Target) -> bool:
    """Return whether the kernel is writing the process's core: it runs no more, and has not ended yet."""
    try:
        status = read_kernel(f"/proc/{target.pid}/status")
    except OSError:
        return False
    return b"\nCoreDumping:\t1\n" in status
