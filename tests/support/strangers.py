"""Another user of this host, who lays what he likes where he may write: what root does must not depend on it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopsy.linux.confine.syscalls import checked
from support import lab

CLONE_NEWNS = 0x00020000
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


def in_another_view(mounts: tuple[str, ...], work: Callable[[], object]) -> None:
    """Run `work` in a child that sees other file systems at some places: each is what mount(8) takes."""
    lab.need_root()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            checked(ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS), "unshare")
            for words in ("--make-rprivate /", *mounts):
                subprocess.run(["mount", *words.split()], check=True)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - it is all that anybody will see of it
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "see what it printed"


def rename_and_lay_links(places: tuple[str, ...], aim: Path, files: tuple[str, ...]) -> None:
    """Take each of a capture's folders away as soon as it shows, and lay another in its place. Never returns."""
    while True:
        for place in places:
            for name in os.listdir(place):
                if name.startswith("autopsy-") and not name.endswith("-away"):
                    with suppress(OSError):
                        os.rename(f"{place}/{name}", f"{place}/{name}-away")
                        _plant(Path(place, name), aim, (*files, *(f"{file}.half" for file in files)))


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
