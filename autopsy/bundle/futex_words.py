"""Reads the words that a thread sleeps on in futex(2) as the mutex that they may be."""

from __future__ import annotations

import struct

from autopsy.bundle.records import FutexWait

_MUTEX = struct.Struct("<iIiIi")  # glibc's pthread_mutex_t: lock, count, owner, nusers, kind
MUTEX_BYTES = 40


def futex_wait(tid: int, address: int, operation: int, value: int, words: bytes) -> FutexWait:
    """Return the record of a sleep; `words` are what lies at the address, empty where it could not be read."""
    lock, count, owner, users, kind = _MUTEX.unpack_from(words) if len(words) >= _MUTEX.size else (0, 0, 0, 0, 0)
    return FutexWait(
        tid=tid,
        address=address,
        operation=operation,
        value=value,
        words=words.hex(),
        lock=lock,
        count=count,
        owner=owner,
        users=users,
        kind=kind,
    )
