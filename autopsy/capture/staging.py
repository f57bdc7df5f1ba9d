"""Where evidence lies until it is sealed: at work in memory, and after each step durably on a disk that answers.

The working folder is on tmpfs, so that a step never waits for the disk that the bundle goes to; that disk may be the
one that is stuck. After each step its files are copied to `<out>/<name>.partial` and fsynced, in a child that may be
abandoned. A place that hangs or refuses is given up for the next one.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autopsy.bundle import names
from autopsy.capture.child import Child, ChildFailed, ChildTimedOut, collect, in_child, spawn
from autopsy.errors import NotStored

PROBE_SECONDS = 2.0
SETTLE_SECONDS = 5.0
MEMORY = (Path("/run"), Path("/dev/shm"))  # noqa: S108 - tmpfs on every Linux; the folder made there is 0700
FALLBACKS = (Path("/var/tmp"), *MEMORY)  # noqa: S108 - likewise
WORK_NEEDS = 512 << 20  # bytes free before we use memory as a workplace: a core can be this large


@dataclass(slots=True)
class Staging:
    """One capture's folders. `work` is complete; `durable` trails it by at most one step, where there is a place.

    `places` are the directories still believed good, the best first; `notes` say why any was given up.
    """

    name: str
    work: Path
    places: list[Path]
    notes: list[str] = field(default_factory=list)
    settling: Child | None = None

    @property
    def durable(self) -> Path:
        """Return the folder that survives us, in the best place left; the working folder itself if none is."""
        return self.places[0] / f"{self.name}.partial" if self.places else self.work

    def folder(self, step: str) -> Path:
        """Make and return a step's evidence folder."""
        made = self.work / "evidence" / step
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
        return made

    def give_up_place(self, why: str) -> None:
        """Stop using the best place. The next one gets everything at the next settling."""
        self.notes.append(f"{self.places.pop(0)}: {why}; the evidence goes elsewhere")

    def settle(self) -> None:
        """Begin to copy what is new to a durable place and fsync it, beside the next step."""
        self.settled()
        if self.places:
            self.settling = spawn(self._copying())

    def settled(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until what was begun is durable. Moves on to the next place when one hangs or refuses."""
        while self.settling is not None:
            child, self.settling = self.settling, None
            try:
                collect(child, seconds)
            except (ChildTimedOut, ChildFailed) as error:
                self.give_up_place(str(error))
                if self.places:
                    self.settling = spawn(self._copying())

    def _copying(self) -> Callable[[], bytes]:
        work, durable = self.work, self.durable
        return lambda: _copy_new(work, durable)

    def clear(self) -> None:
        """Remove the folders of a capture that was sealed. A folder that cannot be removed stays; nothing waits."""
        self.settled()
        for folder in {self.work, self.durable}:
            attempt(_removal(folder), PROBE_SECONDS)


def attempt(work: Callable[[], bytes], seconds: float) -> bool:
    """Run `work` in a child and return whether it went well."""
    try:
        in_child(work, seconds)
    except (ChildTimedOut, ChildFailed):
        return False
    return True


def _removal(folder: Path) -> Callable[[], bytes]:
    def remove() -> bytes:
        shutil.rmtree(folder)
        return b""

    return remove


def prepare(name: str, wanted: tuple[Path, ...]) -> Staging:
    """Make the folders of one capture, after a look at which places answer.

    Raises:
        NotStored: neither the wanted places nor any fallback can be written to.
    """
    asked_for = tuple(path.absolute() for path in wanted)
    places = list(dict.fromkeys((*asked_for, *FALLBACKS)))
    notes: list[str] = []
    while places and (trouble := _probe(places[0], name)):
        notes.append(f"{places.pop(0)}: {trouble}")
    if not places:
        raise NotStored(str(wanted[0]), "; ".join(notes), remedy="give a directory that can be written to: --out DIR")
    if places[0] not in asked_for:
        notes.append(f"the bundle goes to {places[0]}")
    work = next((made for place in MEMORY if (made := _workplace(place, name))), None)
    if work is None:
        work = places[0] / f"{name}.partial"
        work.mkdir(mode=0o700)
    return Staging(name, work, places, notes)


def _probe(place: Path, name: str) -> str:
    """Return why a place cannot be used, empty when a file can be made, written, fsynced and removed there."""

    def try_it() -> bytes:
        probe = place / f".{name}.probe"
        if not place.exists():
            place.mkdir(parents=True, mode=0o700)
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"autopsy\n" * 512)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
        return b""

    try:
        in_child(try_it, PROBE_SECONDS)
    except ChildTimedOut:
        return f"did not answer in {PROBE_SECONDS:.0f} s (is its storage stuck?)"
    except ChildFailed as error:
        return str(error)
    return ""


def _workplace(place: Path, name: str) -> Path | None:
    """Make a private folder in memory, or return None where there is no tmpfs with room."""
    made = place / f"{name}.work"
    try:
        room = os.statvfs(place)
        if room.f_bavail * room.f_frsize < WORK_NEEDS or not os.access(place, os.W_OK):
            return None
        made.mkdir(mode=0o700)
    except OSError:
        return None
    return made


def _copy_new(work: Path, durable: Path) -> bytes:
    """Copy every file that is not there yet in the same size and age, fsync each, then the folders."""
    if work == durable:
        _sync_tree(work)
        return b""
    touched: set[Path] = set()
    for parent, _, files in os.walk(work):
        there = durable / Path(parent).relative_to(work)
        there.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in files:
            if _copy_one(Path(parent, file), there / file):
                touched.update((there, *there.relative_to(durable).parents))
    for folder in {durable / path for path in touched} | {durable.parent}:
        _sync(folder, os.O_DIRECTORY)
    return b""


def _copy_one(source: Path, copy: Path) -> bool:
    status = source.stat()
    try:
        known = copy.stat()
        if (known.st_size, known.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return False
    except FileNotFoundError:
        pass
    if not stat.S_ISREG(status.st_mode):
        return False
    half = copy.with_name(copy.name + ".half")
    shutil.copyfile(source, half)
    half.chmod(0o600)
    os.utime(half, ns=(status.st_atime_ns, status.st_mtime_ns))
    _sync(half, 0)
    half.rename(copy)
    return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for file in files:
            _sync(Path(parent, file), 0)
        _sync(Path(parent), os.O_DIRECTORY)


def manifest_path(staging: Staging) -> Path:
    """Return where the working folder's manifest lies."""
    return staging.work / names.MANIFEST
