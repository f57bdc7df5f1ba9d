"""libvirt's domains inside containers such as KubeVirt's pods, told by files below the root of their processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from autopsy.files.plain import NotPlain
from autopsy.linux.batch import Unanswered, ask
from autopsy.linux.files import open_below, read_kernel, read_regular
from autopsy.target.platforms.libvirt import LIBVIRT, MOST_XML, parse_status
from autopsy.target.platforms.owned import MOST_FILES, NotOwned, open_inside, started_by
from autopsy.target.platforms.platform import MOST_PIDFILE, Inside, Roots, Status, VmClaim, pid_of

EACH = 0.3  # seconds for one process: its root may lie on a file system that hangs
OVERALL = 1.0


class _Found(msgspec.Struct, frozen=True):
    """A pidfile that means the process, as the container tells it."""

    name: str
    pidfile: str
    status: Status | None


def claims(pids: Sequence[int], roots: Roots) -> tuple[VmClaim, ...]:
    """Return what libvirt in each process's own container claims of that process.

    A pidfile there holds the process id of the container's own PID namespace. Processes that see our own files are
    left out: libvirt's files there speak for themselves.
    """
    answers = ask(
        [partial(_of, pid, roots) for pid in pids], each=EACH, overall=OVERALL, owners=list(map(started_by, pids))
    )
    return tuple(
        VmClaim("libvirt", domain.name, pid, Path(domain.pidfile), Inside(f"/proc/{pid}/root", domain.status))
        for pid, answer in zip(pids, answers, strict=True)
        if not isinstance(answer, Unanswered)
        for domain in msgspec.msgpack.decode(answer, type=tuple[_Found, ...])
    )


def _of(pid: int, roots: Roots) -> bytes:
    theirs = os.stat(f"/proc/{pid}/root")
    ours = os.stat("/")
    same_root = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    if same_root and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
        return msgspec.msgpack.encode(())
    inner = inner_pid(read_kernel(f"/proc/{pid}/status"), pid)
    return msgspec.msgpack.encode(tuple(_found(f"/proc/{pid}/root", inner, roots)))


def inner_pid(status: bytes, pid: int) -> int:
    """Return the number that a process has in its own PID namespace, by its /proc/PID/status."""
    line = next((line for line in status.splitlines() if line.startswith(b"NSpid:")), b"")
    numbers = line.split()[1:]
    return int(numbers[-1]) if numbers else pid


def _found(root: str, inner: int, roots: Roots) -> Iterator[_Found]:
    for folder in roots.libvirt:  # the system's; and a session's whose runtime folder is /run
        try:
            listing = open_below(root, str(folder), os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if _is_ours(listing, folder):
                continue
            names = sorted(name.removesuffix(".pid") for name in os.listdir(listing) if name.endswith(".pid"))
        finally:
            os.close(listing)
        for name in names[:MOST_FILES]:
            if pid_of(_small(root, f"{folder}/{name}.pid", MOST_PIDFILE)) == inner:
                raw = _small(root, f"{folder}/{name}.xml", MOST_XML)
                yield _Found(name, f"{folder}/{name}.pid", parse_status(raw) if raw else None)


def _is_ours(listing: int, folder: Path) -> bool:
    try:
        ours = os.stat(folder)
    except OSError:
        return False
    theirs = os.fstat(listing)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _small(root: str, path: str, most: int) -> bytes:
    try:
        return read_regular(open_inside(root, path), path, most)
    except (OSError, NotPlain, NotOwned):
        return b""


CONTAINERS = replace(LIBVIRT, claims=claims)  # libvirt still, found elsewhere: a domain's `root` tells them apart
