"""Looks files up with the rights of another process, so that root tells nothing that the process could not see."""

from __future__ import annotations

import ctypes
import errno
import os
import re

NOT_A_USER = 0xFFFFFFFF  # setfsuid(2) changes nothing, and tells who we are

_libc = ctypes.CDLL(None, use_errno=True)
_IDS = re.compile(rb"^(Uid|Gid):\s*\d+\s+\d+\s+\d+\s+(\d+)$", re.MULTILINE)  # the fourth is the file system's
_GROUPS = re.compile(rb"^Groups:[\t ]*([\d ]*)$", re.MULTILINE)


def look_as(status: bytes) -> None:
    """Have this process look up files, for good, as the one does whose /proc/PID/status this is.

    The kernel takes root's rights on files away with the user. Who is not root looks as itself.

    Raises:
        PermissionError: nobody knows whose the process is, or the kernel did not let us.
    """
    if os.geteuid() != 0:
        return
    ids = {name: int(number) for name, number in _IDS.findall(status)}
    groups = _GROUPS.search(status)
    if len(ids) != 2 or groups is None:
        raise PermissionError(errno.EPERM, "nobody knows whose the process is")
    user, group = ids[b"Uid"], ids[b"Gid"]
    os.setgroups(list(map(int, groups[1].split())))
    for change, number in ((_libc.setfsgid, group), (_libc.setfsuid, user)):
        change(ctypes.c_uint(number))
        if ctypes.c_uint(change(ctypes.c_uint(NOT_A_USER))).value != number:
            raise PermissionError(errno.EPERM, "the kernel gave no other rights")
