"""Reads one process's /proc by a descriptor of its folder, so that its number cannot come to mean another process."""

from __future__ import annotations

import os
import stat as stat_mode
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.bundle import proc_stat
from autopsy.capture.reading.reader import Truncated, Unreadable, as_far_as_read
from autopsy.dataclass import dataclass
from autopsy.target.target import ANOTHER_PROGRAM, Target, is_another_program

MOST_BYTES = 1 << 20
PART_BYTES = 1 << 16
OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class ProcessEnded(Exception):
    """The process has ended, or its number means another one by now."""


@dataclass(frozen=True, slots=True)
class ProcDirectory:
    """The target's /proc/PID, held open: when the process ends, every read through it fails with ESRCH."""

    pid: int
    folder: int

    @property
    def path(self) -> str:
        """Return a path to it that means this process only, in ours and in what we fork; an error's name is no good."""
        return f"/proc/self/fd/{self.folder}"

    def read(self, path: str, most: int = MOST_BYTES) -> bytes | Truncated:
        """Return a file below /proc/PID, at most `most` bytes of it."""
        return read_file(path, most, folder=self.folder)

    def small(self, path: str) -> bytes:
        """Return a small file below /proc/PID, empty where it can't be read."""
        try:
            data = self.read(path, PART_BYTES)
        except OSError:
            return b""
        return as_far_as_read(data)

    def sleeps_in(self, tid: int) -> bytes:
        """Return the kernel's function that a thread sleeps in, without what a compiler adds; empty if nothing tells.

        Since Linux 6.12 wchan is 0 of a thread that went to sleep on a busy processor, for as long as that still has it
        in its queue (DELAY_DEQUEUE): its stack tells then, to root.
        """
        wchan = self.small(f"task/{tid}/wchan").strip()
        if wchan.strip(b"0"):
            return wchan.partition(b".")[0]
        _, _, first = self.small(f"task/{tid}/stack").partition(b"\n")[0].partition(b" ")
        return first.partition(b"+")[0].partition(b".")[0]

    def link(self, path: str) -> bytes:
        """Return where a link below /proc/PID leads."""
        return os.readlink(path.encode(), dir_fd=self.folder)

    def numbers(self, path: str) -> list[int]:
        """Return the numbered entries of a folder below /proc/PID (`task`, `fd`), in order.

        Raises:
            Gone: the process has ended.
        """
        try:
            folder = os.open(path, OPEN | os.O_DIRECTORY, dir_fd=self.folder)
            try:
                return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
            finally:
                os.close(folder)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessEnded(f"process {self.pid} ended while it was looked at") from error


@contextmanager
def held(target: Target) -> Iterator[ProcDirectory]:
    """Hold the target's /proc/PID open.

    Raises:
        Gone: the process has ended, another one has its number, or it has started another program.
    """
    try:
        folder = os.open(f"/proc/{target.pid}", OPEN | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise ProcessEnded(f"process {target.pid} has ended") from error
    try:
        process = ProcDirectory(target.pid, folder)
        must_be_the_same(process, target)
        yield process
    finally:
        os.close(folder)


def must_be_the_same(process: ProcDirectory, target: Target) -> None:
    """Make sure that a process is the one that was found, and runs what it ran then.

    Raises:
        Gone: it is another one, or has started another program.
    """
    stat = proc_stat.parse(process.small("stat"))
    if stat.start_ticks != target.record.start_ticks:
        raise ProcessEnded(f"process {target.pid} is not the one that was captured: it started at another time")
    if is_another_program(target, stat):
        raise ProcessEnded(f"process {target.pid} {ANOTHER_PROGRAM}, which is none of this capture's")


def read_file(path: str, most: int = MOST_BYTES, *, folder: int | None = None) -> bytes | Truncated:
    """Return a file's bytes; a FIFO or a terminal in its place is not waited for."""
    descriptor = os.open(path, OPEN, dir_fd=folder)
    try:
        return read_open(descriptor, most)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, most: int) -> bytes | Truncated:
    """Return what is left in an open file, at most `most` bytes."""
    parts = []
    size = 0
    while part := os.read(descriptor, PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > most:
            return Truncated(b"".join(parts)[:most], f"cut after {most} bytes")
    return b"".join(parts)


def tail_of(descriptor: int, most: int) -> bytes:
    """Return the last `most` bytes of an open file, from the start of a line on.

    Raises:
        Unreadable: it is no regular file; to read a pipe would take its bytes from whoever they are meant for.
    """
    status = os.fstat(descriptor)
    if not stat_mode.S_ISREG(status.st_mode):
        raise Unreadable("no regular file")
    size = status.st_size
    data = os.pread(descriptor, most, max(0, size - most))
    return data if size <= most else data.partition(b"\n")[2]
