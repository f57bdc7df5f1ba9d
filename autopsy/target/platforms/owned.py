"""Files of a manager's, taken only from the user whose folder they lie in: no link is followed, owners are compared."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.linux.files import open_below, read_kernel, read_regular

MOST_FILES = 4096  # looked at in one folder: a bound on our time
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotOwned(Exception):
    """Somebody has a hand in the file who has no right to speak there."""


def is_trusted(uid: int) -> bool:
    """Return whether a user's word counts for every process: root's, and that of whoever runs us."""
    return uid in (0, os.geteuid())


@dataclass(frozen=True, slots=True)
class Folder:
    """An open folder, every part of whose path is root's, ours or its owner's."""

    path: Path
    owner: int
    descriptor: int

    def named(self, ending: str) -> tuple[str, ...]:
        """Return the names of its files without their ending."""
        names = sorted(name.removesuffix(ending) for name in os.listdir(self.descriptor) if name.endswith(ending))
        return tuple(names[:MOST_FILES])

    def read(self, name: str, most: int) -> bytes:
        """Read one of its files.

        Raises:
            NotOwned: it is somebody else's.
            NotPlain: it is no regular file, or larger than `most` bytes.
            OSError: as open(2) and read(2) give it.
        """
        return _read_owned(os.open(name, FILE, dir_fd=self.descriptor), str(self.path / name), self.owner, most)


def read_owned(path: Path, owner: int, most: int) -> bytes:
    """Read a file of a folder whose owner is known already.

    Raises:
        NotOwned: it is somebody else's.
        NotPlain: it is no regular file, or larger than `most` bytes.
        OSError: as open(2) and read(2) give it.
    """
    return _read_owned(os.open(path, FILE), str(path), owner, most)


def _read_owned(descriptor: int, path: str, owner: int, most: int) -> bytes:
    uid = os.fstat(descriptor).st_uid
    if uid != owner and not (is_trusted(uid) and is_trusted(owner)):
        os.close(descriptor)
        raise NotOwned(f"{path} is user {uid}'s, not user {owner}'s")
    return read_regular(descriptor, path, most)


@contextmanager
def opened(run: Path, path: Path) -> Iterator[Folder | None]:
    """Open a folder below `run`, None where there is none or one that others have a hand in."""
    descriptors: list[int] = []
    try:
        yield _walk(run, path, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _walk(run: Path, path: Path, descriptors: list[int]) -> Folder | None:
    try:
        descriptors.append(os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for part in path.relative_to(run).parts:
            descriptors.append(os.open(part, FOLDER, dir_fd=descriptors[-1]))
        statuses = [os.fstat(descriptor) for descriptor in descriptors[1:]]
    except OSError:
        return None
    owner = statuses[-1].st_uid
    for status in statuses:
        if (status.st_uid != owner and not is_trusted(status.st_uid)) or status.st_mode & stat.S_IWOTH:
            return None
    return Folder(path, owner, descriptors[-1])


def open_inside(root: str, path: str) -> int:
    """Open a regular file below the root of a process, /proc/PID/root, that is of those who speak for it there.

    Who made the container may have laid any file of the host into it, over another or as a link.

    Raises:
        NotOwned: it is somebody else's.
        NotPlain: it is no regular file.
        OSError: as openat2(2) gives it.
    """
    process = root.removesuffix("/root")
    allowed = speakers(read_kernel(f"{process}/status"), read_kernel(f"{process}/uid_map"))
    descriptor = open_below(root, path)
    uid = os.fstat(descriptor).st_uid
    if uid in allowed:
        return descriptor
    os.close(descriptor)
    raise NotOwned(f"{root}{path} is user {uid}'s, who has no say there")


def speakers(status: bytes, uid_map: bytes) -> frozenset[int]:
    """Return who may speak for a process in its container: its own user, and its user namespace's root.

    The host's root does only where that is the same: anybody may make a namespace whose root he is himself.
    """
    own = next((line.split()[1:] for line in status.splitlines() if line.startswith(b"Uid:")), [])
    rows = [line.split() for line in uid_map.splitlines()]
    roots = [int(row[1]) for row in rows if len(row) == 3 and row[0] == b"0"]
    return frozenset({*(int(uid) for uid in own[:1]), *roots})


def runs_as(pid: int, uid: int) -> bool:
    """Return whether a process is one user's altogether: its real, effective, saved and file system uid."""
    return set(_uids(pid)) == {b"%d" % uid}


def started_by(pid: int) -> int:
    """Return a process's real uid, -1 where it has ended; the owner of /proc/PID is root where it is not dumpable."""
    return int(next(iter(_uids(pid)), b"-1"))


def _uids(pid: int) -> list[bytes]:
    try:
        status = read_kernel(f"/proc/{pid}/status")
    except OSError:
        return []
    return next((line.split()[1:] for line in status.splitlines() if line.startswith(b"Uid:")), [])
