"""Which other processes a thread of the target waits for in the kernel: children, watchers, holders of leases."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import msgspec

from autopsy.bundle.other_programs import Kind, ProcessWait
from autopsy.capture.reading.procfs import ProcDirectory, read_file
from autopsy.capture.reading.reader import Truncated, as_far_as_read
from autopsy.linux.fd_holders import holders

# By the kernel's function that a thread sleeps in: kernel/exit.c, fs/notify/fanotify, kernel/seccomp.c, fs/locks.c,
# fs/autofs/waitq.c.
WAITS: Mapping[bytes, Kind] = {
    b"do_wait": "child",
    b"fanotify_handle_event": "watcher",
    b"fanotify_get_response": "watcher",
    b"seccomp_do_user_notification": "supervisor",
    b"__break_lease": "lease",
    b"autofs_wait": "automounter",
}
LINKS: Mapping[Kind, bytes] = {"watcher": b"anon_inode:[fanotify]", "supervisor": b"anon_inode:seccomp notify"}
MARK = re.compile(rb"^fanotify (?:ino|mnt_id|sdev)\S*.* mask:([0-9a-f]+)", re.MULTILINE)  # proc_pid_fdinfo(5)
BREAKING = re.compile(rb"^\d+: LEASE +BREAKING +\S+ (\d+) ", re.MULTILINE)  # proc_locks(5)
# The options of an autofs mount name its daemon's process group, whose first process it was: fs/autofs/inode.c.
AUTOFS = re.compile(rb"^.* - autofs \S+ \S*\bpgrp=(\d+)", re.MULTILINE)
MOST_TABLE = 4 << 20
ASKS_FIRST = 0x70000  # linux/fanotify.h: FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM
SEARCH_SECONDS = 1.0


def waits(process: ProcDirectory) -> bytes | Truncated:
    """Return ProcessWait[] as JSON; be it asked in a reader."""
    kinds = {tid: kind for tid in process.numbers("task") if (kind := _kind(process, tid)) is not None}
    held, complete = holders(
        {LINKS[kind] for kind in kinds.values() if kind in LINKS}, seconds=SEARCH_SECONDS, but=process.pid
    )
    who: dict[Kind, tuple[int, ...]] = {
        "watcher": tuple(pid for pid in held.get(LINKS["watcher"], ()) if _asks_first(pid)),
        "supervisor": held.get(LINKS["supervisor"], ()),
    }
    if "child" in kinds.values():
        who["child"] = tuple(_children(process))
    if "lease" in kinds.values():
        who["lease"] = _told(BREAKING, read_file("/proc/locks", MOST_TABLE))
    if "automounter" in kinds.values():
        who["automounter"] = _told(AUTOFS, process.read("mountinfo", MOST_TABLE))
    records = [ProcessWait(tid=tid, kind=kind, peer_pids=who.get(kind, ())) for tid, kind in kinds.items()]
    data = msgspec.json.encode(records)
    return data if complete else Truncated(data, f"not all processes could be asked in {SEARCH_SECONDS} s")


def _kind(process: ProcDirectory, tid: int) -> Kind | None:
    with suppress(OSError):
        return WAITS.get(process.sleeps_in(tid))
    return None


def _children(process: ProcDirectory) -> Iterator[int]:
    """Yield the children of all threads: any of them may wait for each. A kernel may be built without this file."""
    for tid in process.numbers("task"):
        with suppress(OSError, ValueError):
            yield from map(int, process.small(f"task/{tid}/children").split())


def _told(pattern: re.Pattern[bytes], table: bytes | Truncated) -> tuple[int, ...]:
    """Return the processes that the lines of a table name, each once."""
    data = as_far_as_read(table)
    return tuple(dict.fromkeys(pid for match in pattern.findall(data) if (pid := int(match))))


def _asks_first(pid: int) -> bool:
    """Tell whether a process that watches files is asked before they are opened; so it is where nobody may know."""
    give_up = time.monotonic() + SEARCH_SECONDS
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if time.monotonic() > give_up:
                return True
            if os.readlink(f"/proc/{pid}/fd/{number}".encode()) == LINKS["watcher"]:
                fdinfo = read_file(f"/proc/{pid}/fdinfo/{number}")
                marks = MARK.findall(as_far_as_read(fdinfo))
                if any(int(mask, 16) & ASKS_FIRST for mask in marks):
                    return True
    except OSError:
        return True  # what it marks was not seen
    return False
