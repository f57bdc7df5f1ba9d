"""Who else is in open(2) of the FIFO that a thread of the target opens: none of them has a descriptor of it yet."""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import msgspec

from autopsy.bundle.other_programs import FifoOpening
from autopsy.capture.reading.procfs import OPEN, ProcDirectory
from autopsy.capture.reading.reader import Truncated
from autopsy.dataclass import dataclass
from autopsy.linux.statx import FileStatus, without_asking

WAITS = b"wait_for_partner"  # fs/pipe.c, in every kernel: where an open(2) of a FIFO sleeps until the other end is open
PATH_BYTES = 4096  # PATH_MAX, and a page
SEARCH_SECONDS = 1.0
AT_FDCWD = -100
# Which argument is the path, and which the flags: asm/unistd_64.h, asm-generic/unistd.h. openat2's flags lie elsewhere.
OPENS: Mapping[str, Mapping[int, tuple[int, int]]] = {
    "x86_64": {2: (0, 1), 257: (1, 2)},
    "aarch64": {56: (1, 2)},
}


@dataclass(frozen=True, slots=True)
class _Opening:
    """A FIFO that a thread is in open(2) of: its path as the thread wrote it, which file that is, and the mode."""

    path: bytes
    fifo: FileStatus
    access: int


def openings(process: ProcDirectory) -> bytes | Truncated:
    """Return FifoOpening[] as JSON: be the search, in a reader, for a path may lie on storage that is dead."""
    mine = dict(_of_the_target(process))
    partners, complete = _partners(tuple(mine.values()), but=process.pid) if mine else ({}, True)
    records = [
        FifoOpening(
            tid=tid,
            path=opening.path.decode("utf-8", "replace"),
            peer_pids=tuple(partners.get((opening.fifo.device, opening.fifo.inode, opening.access), ())),
        )
        for tid, opening in mine.items()
    ]
    data = msgspec.json.encode(records)
    return data if complete else Truncated(data, f"not all processes could be asked in {SEARCH_SECONDS} s")


def _of_the_target(process: ProcDirectory) -> Iterator[tuple[int, _Opening]]:
    for tid in process.numbers("task"):
        if process.sleeps_in(tid) == WAITS and (opening := _opening(process, tid)) is not None:
            yield tid, opening


def _opening(process: ProcDirectory, tid: int) -> _Opening | None:
    """Return which FIFO a thread is in open(2) of, None where it is in another call, or opens another kind of file."""
    words = process.small(f"task/{tid}/syscall").split()
    with suppress(ValueError, IndexError, OSError, OverflowError):
        path_at, flags_at = OPENS[platform.machine()][int(words[0])]
        path = _string(process, int(words[1 + path_at], 16))
        if path_at and int(words[1], 16) & 0xFFFFFFFF != AT_FDCWD & 0xFFFFFFFF and not path.startswith(b"/"):
            return None  # relative to a folder of its own
        name = os.fsdecode(b"root" + path if path.startswith(b"/") else b"cwd/" + path)
        status = without_asking(process.folder, name)
        if path and stat.S_ISFIFO(status.mode):
            return _Opening(path, status, int(words[1 + flags_at], 16) & os.O_ACCMODE)
    return None


def _string(process: ProcDirectory, address: int) -> bytes:
    memory = os.open("mem", OPEN, dir_fd=process.folder)
    try:
        room = PATH_BYTES - address % PATH_BYTES  # no further than its page, so that a hole behind it costs nothing
        data = os.pread(memory, room, address)
        if b"\0" not in data:
            data += os.pread(memory, PATH_BYTES, address + room)
    finally:
        os.close(memory)
    return data.partition(b"\0")[0]


Key = tuple[tuple[int, int], int, int]


def _partners(mine: tuple[_Opening, ...], but: int) -> tuple[dict[Key, list[int]], bool]:
    """Return the processes that open the other end of each, and whether all could be asked in time."""
    wanted = {(opening.fifo.device, opening.fifo.inode): opening.access for opening in mine}
    pids: dict[Key, list[int]] = {}
    give_up = time.monotonic() + SEARCH_SECONDS
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == but:
            continue
        if time.monotonic() > give_up:
            return pids, False
        for other in _of_another(int(entry)):
            access = wanted.get((other.fifo.device, other.fifo.inode), other.access)
            if access != other.access:
                pids.setdefault((other.fifo.device, other.fifo.inode, access), []).append(int(entry))
    return pids, True


def _of_another(pid: int) -> Iterator[_Opening]:
    with suppress(OSError):  # it ended, or the kernel does not show it to us
        folder = os.open(f"/proc/{pid}", OPEN | os.O_DIRECTORY)
        try:
            process = ProcDirectory(pid, folder)
            numbers = OPENS[platform.machine()]
            for tid in os.listdir(f"/proc/{pid}/task"):
                call = process.small(f"task/{tid}/syscall").partition(b" ")[0]
                if call.isdigit() and int(call) in numbers and (opening := _opening(process, int(tid))) is not None:
                    yield opening
        finally:
            os.close(folder)
