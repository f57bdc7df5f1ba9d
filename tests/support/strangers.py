"""Another user of this host, who lays what he likes where he may write: what root does must not depend on it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support import lab

STRANGER = 61998  # of the range that systemd gives to services for a while: nobody's here


@contextmanager
def at_once(work: Callable[[], None]) -> Iterator[int]:
    """Run `work` as that user, in a child, until the end of the block."""
    lab.need_root()
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become()
            os.write(told, b"x")
            work()
        finally:
            os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def become() -> None:
    """Be the stranger from now on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)


def does(work: Callable[[], object]) -> None:
    """Have that user do something, and wait for its end."""
    lab.need_root()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            become()
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def everybodys(mode: int = 0o1777) -> Iterator[Path]:
    """Make a folder that everybody can reach and write to, as /var/tmp is."""
    with tempfile.TemporaryDirectory(prefix="autopsy-everybodys-", dir="/var/tmp") as made:
        place = Path(made)
        place.chmod(mode)
        yield place


def lay_links(place: Path, aim: Path, files: tuple[str, ...]) -> None:
    """Take every capture's durable folder before the capture makes it: its name shows in memory. Never returns."""
    seen = {name for memory in ("/dev/shm", "/run") for name in os.listdir(memory)}  # noqa: S108 - where they show
    while True:
        for memory in ("/dev/shm", "/run"):  # noqa: S108 - likewise
            for name in os.listdir(memory):
                if name.startswith("autopsy-") and name.endswith(".work") and name not in seen:
                    seen.add(name)
                    _plant(place / f"{name.removesuffix('.work')}.partial", aim, files)


def _plant(folder: Path, aim: Path, files: tuple[str, ...]) -> None:
    try:
        folder.mkdir(0o755)
        for file in files:
            link = folder / f"{file}.half"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(aim)
    except OSError:  # the capture was quicker
        return
