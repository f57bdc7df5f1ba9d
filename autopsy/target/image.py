"""Tells which file a process runs: /proc/PID/exe, or what a loader has mapped that was itself started with it."""

from __future__ import annotations

import os
import re

from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel

LOADER = re.compile(
    r"ld(?:-linux[\w.-]*|-musl[\w.-]*|64)?(?:-[\d.]+)?\.so(?:\.\d+)?"
)  # of glibc, by architecture; musl
MOST_MAPS = 16 << 20


@dataclass(frozen=True, slots=True)
class ProgramImage:
    """A program in a process: where to open it whatever has become of its path, and that path as /proc tells it."""

    place: str
    link: str


def is_loader(exe: str) -> bool:
    """Return whether a binary's path is named as the dynamic loader is."""
    return LOADER.fullmatch(os.path.basename(exe)) is not None


def named_like_qemu(exe: str) -> bool:
    """Return whether a binary's path is named as distributions name QEMU: qemu-system-*, qemu-kvm, kvm."""
    name = os.path.basename(exe)
    return "qemu" in name or "kvm" in name


def image_of(pid: int) -> ProgramImage:
    """Return what a process runs; behind a loader the first mapped program that is named like a QEMU.

    Can block where a thread holds the lock of the memory map: call it in a child.

    Raises:
        OSError: the process is gone, or the kernel does not show it to us.
    """
    exe = os.readlink(f"/proc/{pid}/exe")
    if is_loader(exe):
        rows = [row.split(maxsplit=5) for row in read_kernel(f"/proc/{pid}/maps", MOST_MAPS).splitlines()]
        files = [row for row in rows if len(row) == 6]
        run = {row[5] for row in files if b"x" in row[1]}  # guest RAM may lie in a file of such a name, too
        for row in files:
            if not int(row[2], 16) and row[5] in run and named_like_qemu(path := os.fsdecode(row[5])):
                return ProgramImage(f"/proc/{pid}/map_files/{_range(row[0])}", path)
    return ProgramImage(f"/proc/{pid}/exe", exe)


def _range(field: bytes) -> str:
    """Return a range of addresses as /proc/PID/map_files names it: without leading zeros."""
    start, _, end = field.partition(b"-")
    return f"{int(start, 16):x}-{int(end, 16):x}"
