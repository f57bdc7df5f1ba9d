"""The file in which a capture finds a VM's last minute of samples.

It is `<run folder>/<pid>-<start_ticks>.jsonl`, written anew each time, whole or not at all, and it stays after the
watch has ended: whoever reads it compares boot_id, pid and start_ticks with the process at hand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import deque
from pathlib import Path

from autopsy.bundle.ring import Ring, RingSample, decode, encode
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain
from autopsy.linux.files import read_plain, read_regular
from autopsy.target.identity import stat_of

SECONDS = 60.0
MOST_SAMPLES = 120  # a sample each second while a stall is suspected, each two seconds else
MOST_BYTES = 1 << 20
RUN = Path("/run")
OURS = "autopsy"
FOLDER = "watch"
NAME = re.compile(r"([0-9]+)-([0-9]+)\.jsonl")
ANSWER = re.compile(r"capture-([0-9]+)-[0-9a-f]+\.json")  # what a capture says when it ends, with the watch's PID
ASKED = re.compile(r"asked-.+\.env")  # what a unit is told when it begins


def run_folder() -> Path:
    """Return the folder of the rings of whoever runs this, whether or not it is there."""
    if os.geteuid() == 0:
        return RUN / OURS / FOLDER
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    return (Path(named) if named.startswith("/") else RUN / "user" / str(os.geteuid())) / OURS / FOLDER


def open_run_folder(folder: Path | None = None) -> int:
    """Return a descriptor of the run folder, made where it is missing: ours, and nobody else's to look into.

    Raises:
        NotPrivate: somebody else made it, or others may look into it.
        OSError: as mkdir(2) gives it.
    """
    place = folder or run_folder()
    above = os.open(place.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        held = private.enter(above, f"{place.parent.name}/{place.name}")
    finally:
        os.close(above)
    if os.fstat(held).st_mode & private.OWNER_ONLY:
        os.close(held)
        raise private.NotPrivate(errno.EPERM, "others may look into it", str(place))
    return held


def file_name(pid: int, start_ticks: int) -> str:
    """Return the name of a VM's ring in the run folder."""
    return f"{pid}-{start_ticks}.jsonl"


def write(folder: int, ring: Ring) -> None:
    """Write a VM's ring into the run folder that is held, whole or not at all.

    Raises:
        OSError: as open(2), write(2) and rename(2) give it.
    """
    private.replace(folder, file_name(ring.header.pid, ring.header.start_ticks), encode(ring))


def tidy(folder: int) -> None:
    """Remove from the run folder that is held the rings of processes that are no more, and what an earlier watch left.

    A capture of that one, which may still go on, has its answer open. A unit's words are those of the one watch that is
    a unit.
    """
    for name in os.listdir(folder):
        if ASKED.fullmatch(name):
            left = True
        elif match := ANSWER.fullmatch(name):
            left = not os.path.exists(f"/proc/{match[1]}")
        elif match := NAME.fullmatch(name):
            left = not _is_here(int(match[1]), int(match[2]))
        else:
            continue
        if left:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _is_here(pid: int, start_ticks: int) -> bool:
    try:
        return stat_of(f"/proc/{pid}").start_ticks == start_ticks
    except (OSError, ValueError, IndexError):
        return False


def read(path: Path) -> Ring | None:
    """Read a ring; None where there is none, or none that can be understood."""
    try:
        return decode(read_plain(path, MOST_BYTES))
    except (OSError, NotPlain, ValueError):
        return None


def of_this_process(pid: int, start_ticks: int, boot_id: str) -> bytes:
    """Return the ring of a process as the watch of whoever runs this has left it; empty where there is none.

    Only a folder and a file count that are ours, and that nobody else may write to.
    """
    try:
        folder = private.hold(run_folder())
        try:
            data = read_regular(_open_ours(folder, file_name(pid, start_ticks)), FOLDER, MOST_BYTES)
        finally:
            os.close(folder)
        header = decode(data).header
    except (OSError, NotPlain, ValueError):  # msgspec's errors are ValueErrors
        return b""
    same = (header.pid, header.start_ticks, header.boot_id) == (pid, start_ticks, boot_id)
    return data if same else b""


def _open_ours(folder: int, name: str) -> int:
    descriptor = open_plain(name, below=folder)
    status = os.fstat(descriptor)
    if status.st_uid == os.geteuid() and not status.st_mode & private.OTHERS_WRITE:
        return descriptor
    os.close(descriptor)
    raise private.NotPrivate(errno.EPERM, "not ours alone", name)


def trimmed(samples: deque[RingSample], now_ns: int) -> None:
    """Let go of what is older than the ring is long."""
    while samples and (len(samples) > MOST_SAMPLES or now_ns - samples[0].monotonic_ns > SECONDS * 1e9):
        samples.popleft()
