"""Opens what QEMU writes its words to, where the process itself may read it.

To open a descriptor of /proc/PID/fd again is to open its file with our own rights. One that was opened by O_PATH alone,
or handed down to be written to only, stands for a file that its holder may not read: its bytes are none of a bundle's.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import Unreadable
from autopsy.files.plain import LOOK, NotPlain, open_beneath, reopen

O_PATH = 0o10000000  # as fdinfo tells it: include/uapi/asm-generic/fcntl.h
LOGS = "/var/log/"
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)
_MOUNT = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)
_INODE = re.compile(rb"^ino:\s*(\d+)$", re.MULTILINE)  # since kernel 5.14
_UIDS = re.compile(rb"^Uid:\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", re.MULTILINE)


def open_own(process: ProcDirectory, number: int) -> int:
    """Open the file of one of the process's descriptors to read.

    It must be the process's own, or root's below /var/log, found there by its path without any link.

    Raises:
        Unreadable: the process may not read it, or it is no regular file.
        OSError: as open(2) gives it.
    """
    fdinfo = process.small(f"fdinfo/{number}")
    if not readable(fdinfo):
        raise Unreadable("the process only knows its path")
    looked_at = os.open(f"{process.path}/fd/{number}", LOOK & ~os.O_NOFOLLOW)
    try:
        link = process.link(f"fd/{number}") if _is_told_of(looked_at, fdinfo) else b""
        must_be_own(looked_at, link, process.small("status"))
        return reopen(looked_at, f"fd/{number}")
    except NotPlain as error:
        raise Unreadable("no regular file") from error
    finally:
        os.close(looked_at)


def readable(fdinfo: bytes) -> bool:
    """Return whether a descriptor stands for an open file, and not only for its path."""
    flags = _FLAGS.search(fdinfo)
    return flags is not None and not int(flags[1], 8) & O_PATH


def _is_told_of(looked_at: int, fdinfo: bytes) -> bool:
    """Return whether a file is the one that the fdinfo tells of: the descriptor may have been changed in between.

    Before kernel 5.14 nobody knows.
    """
    with open(f"/proc/self/fdinfo/{looked_at}", "rb") as stream:
        ours = stream.read()
    return all(
        (theirs := pattern.search(fdinfo)) and (own := pattern.search(ours)) and theirs[1] == own[1]
        for pattern in (_MOUNT, _INODE)
    )


def must_be_own(looked_at: int, link: bytes, status: bytes) -> None:
    """Refuse a file that is neither of the user that a process's /proc/PID/status tells, nor a log of root's.

    Raises:
        Unreadable: it is another's, or nobody knows whose the process is.
    """
    match = _UIDS.search(status)  # real, effective, saved, and of the file system
    users = set(map(int, match.groups())) if match else set()
    owner = os.fstat(looked_at).st_uid
    if {owner} != users and not (owner == 0 and _is_a_log(os.fsdecode(link), looked_at)):
        raise Unreadable("it is not the process's own, nor a log of root's")


def _is_a_log(path: str, looked_at: int) -> bool:
    """Return whether a file is the one of its name below our own /var/log."""
    if not path.startswith(LOGS):
        return False
    with suppress(OSError, NotPlain):
        folder = os.open(LOGS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            ours = open_beneath(folder, path.removeprefix(LOGS))
        finally:
            os.close(folder)
        try:
            return os.path.samestat(os.fstat(ours), os.fstat(looked_at))
        finally:
            os.close(ours)
    return False
