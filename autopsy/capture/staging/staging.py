"""Where evidence lies until it is sealed: at work in memory, and after each step durably on a disk that answers.

The working folder is on tmpfs, so that a step never waits for the disk that the bundle goes to; that disk may be the
one that is stuck. After each step its files are copied to `<place>/<name>.partial` and fsynced, in a child that may be
abandoned. A place that hangs or refuses is given up for the next one; one that is too small for the copy still gets
the bundle. What lies in memory is not copied to memory again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.freeze.size_estimate import Needs
from autopsy.capture.staging import places
from autopsy.capture.staging.leftovers import claim
from autopsy.capture.staging.places import Unusable
from autopsy.errors import NotStored
from autopsy.linux.child import Child, ChildFailed, ChildTimedOut, collect, in_child, spawn

PUT_SECONDS = 2.0
SETTLE_SECONDS = 5.0
PROBE_SECONDS = places.PROBE_SECONDS
MODEST = Needs(work=96 << 20, bundle=16 << 20)
FULL = b"full"
MOST_OF_A_NAME = 9


@dataclass(slots=True)
class Staging:
    """One capture's folders. `work` is complete; `durable` trails it by at most one step, where there is a place.

    `places` are the directories still believed good, the best first; the bundle goes to the first. Those in `tight`
    have room for the bundle and for nothing else. `notes` say why any was given up. `made` are folders to
    remove, `tried` places that are not looked at again.
    """

    name: str
    work: Path
    places: list[Path]
    notes: list[str] = field(default_factory=list)
    tight: set[Path] = field(default_factory=set)
    in_memory: bool = True
    tried: set[Path] = field(default_factory=set)
    made: set[Path] = field(default_factory=set)
    settling: Child | None = None
    claimed: int | None = None

    @property
    def durable(self) -> Path:
        """Return the folder that survives us: in the best place that has room for it, or the working folder itself."""
        for place in self.places:
            folder = place / f"{self.name}.partial"
            if folder == self.work:
                return self.work
            if place not in self.tight:
                return self.work if self.in_memory and places.lies_in_memory(place) else folder
        return self.work

    def folder(self, step: str) -> Path:
        """Make and return a step's evidence folder. Where the disk refuses or hangs, the step will say so."""
        made = self.work / "evidence" / step

        def make() -> bytes:
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
            return b""

        self._do(make, str(made))
        return made

    def put(self, name: str, data: bytes) -> None:
        """Store a file of the capture's own, whole or not at all; never raises and never hangs."""
        whole = self.work / name
        half = whole.with_name(f".{name}.half")

        def write() -> bytes:
            half.write_bytes(data)
            half.chmod(0o600)
            half.rename(whole)  # a copy of it is made at any moment
            return b""

        self._do(write, name)

    def _do(self, work: Callable[[], bytes], what: str) -> None:
        try:
            if self.in_memory:
                work()
            else:
                in_child(work, PUT_SECONDS)
        except (OSError, ChildTimedOut, ChildFailed) as error:
            self._note(f"{what} could not be written: {error}")

    def claim(self) -> None:
        """Hold the working folder, so that nobody takes it for one that a killed capture left behind."""
        if self.in_memory:
            self.claimed = claim(self.work)

    def give_up(self, place: Path, why: str, *, clean: bool = False) -> None:
        """Stop using a place. The next one gets everything at the next settling. With `clean` our copy is removed."""
        self.places.remove(place)
        if not self.places:
            self._fall_back()
        self._note(f"{place}: {why}; the evidence goes to {self.places[0] if self.places else 'no other place'}")
        if clean and place / f"{self.name}.partial" != self.work:
            self._remove(place / f"{self.name}.partial")

    def give_up_place(self, why: str) -> None:
        """Stop using the best place."""
        self.give_up(self.places[0], why)

    def _fall_back(self) -> None:
        """Look for another place after the last one was given up."""
        for path in places.FALLBACKS:
            if path in self.tried:
                continue
            self.tried.add(path)
            match places.probe(path, 0):
                case Unusable(why=why):
                    self._note(f"{path}: {why}")
                case place:
                    self.places.append(place.path)
                    return

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def settle(self) -> None:
        """Begin to copy what is new to a durable place and fsync it, beside the next step."""
        self.settled()
        self._begin()

    def _begin(self) -> None:
        if self.places:
            durable = self.durable
            if durable == self.work and self.in_memory:
                return
            self.made.add(durable)
            work = self.work
            try:
                self.settling = spawn(lambda: _copy_new(work, durable))
            except ChildFailed as error:
                self._note(f"the evidence could not be made durable in time: {error}")

    def settled(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until what was begun is durable. Moves on to the next place when one hangs, refuses or is full."""
        while self.settling is not None:
            child, self.settling = self.settling, None
            durable = self.durable
            place = durable.parent
            try:
                if collect(child, seconds) == FULL:
                    self._note(f"{place}: too full to keep the evidence while it is gathered")
                    self.tight.add(place)
                    self._begin()
            except ChildTimedOut as error:
                self.made.discard(durable)
                self.give_up(place, str(error))
                self._begin()
            except ChildFailed as error:
                self.give_up(place, str(error), clean=True)
                self._begin()

    def make_room(self) -> bool:
        """Remove our copy from the best place, where the bundle finds no room beside it; return whether that is news.

        All of it is in the working folder, too.
        """
        copy = self.places[0] / f"{self.name}.partial"
        if copy not in self.made or copy == self.work:
            return False
        self.tight.add(self.places[0])
        self._remove(copy)
        return True

    def clear(self) -> None:
        """Remove the folders of a capture that was sealed. A folder that cannot be removed stays; nothing waits."""
        self.settled()
        for folder in {self.work, *self.made}:
            self._remove(folder)
        if self.claimed is not None:
            os.close(self.claimed)
            self.claimed = None

    def _remove(self, folder: Path) -> None:
        self.made.discard(folder)
        if not attempt(_removal(folder), PROBE_SECONDS):
            self._note(f"{folder} could not be removed")


def attempt(work: Callable[[], bytes], seconds: float) -> bool:
    """Run `work` in a child and return whether it went well."""
    try:
        in_child(work, seconds)
    except (ChildTimedOut, ChildFailed):
        return False
    return True


def _removal(folder: Path) -> Callable[[], bytes]:
    def remove() -> bytes:
        if os.path.lexists(folder):
            shutil.rmtree(folder)
        return b""

    return remove


def prepare(name: str, wanted: tuple[Path, ...], needs: Needs = MODEST) -> Staging:
    """Make the folders of one capture, after a look at which places answer and have room.

    Raises:
        NotStored: neither the wanted places nor any fallback can be written to.
    """
    asked_for = tuple(path.absolute() for path in wanted)
    notes = [needs.note] if needs.note else []
    good: list[Path] = []
    tight: set[Path] = set()
    tried: set[Path] = set()
    for path in dict.fromkeys((*asked_for, *places.FALLBACKS)):
        if good and path not in asked_for:
            break
        tried.add(path)
        match places.probe(path, needs.bundle):
            case Unusable(why=why):
                notes.append(f"{path}: {why}")
            case place:
                good.append(place.path)
                if place.room < needs.work + needs.bundle:
                    tight.add(place.path)
    if not good:
        raise NotStored(str(wanted[0]), "; ".join(notes), remedy="give a directory that can be written to: --out DIR")
    if good[0] not in asked_for:
        notes.append(f"the bundle goes to {good[0]}")
    made = _made(name, good, tight, needs.work)
    if made is None:
        raise NotStored(str(good[0]), "no folder can be made there", remedy="give a directory with room: --out DIR")
    chosen, work, in_memory = made
    return Staging(chosen, work, good, notes, tight, in_memory=in_memory, tried=tried)


def _made(name: str, good: list[Path], tight: set[Path], needs: int) -> tuple[str, Path, bool] | None:
    """Make the working folder, in memory where there is room. Return the capture's name, the folder, and where it is.

    Another capture of this very second may have the name: one that was killed, or one of a VM that is called the same.
    """
    memories = places.memory_places()
    for chosen in (name, *(f"{name}-{number}" for number in range(2, MOST_OF_A_NAME))):
        if _taken(chosen, (*good, *memories)):
            continue
        if found := next((work for each in memories if (work := _workplace(each, chosen, needs))), None):
            return chosen, found, True
        if not _taken(chosen, memories):  # since we looked
            if found := _on_disk(chosen, good, tight):
                return chosen, found, False
            if not _taken(chosen, tuple(good)):
                return None
    return None


def _taken(name: str, folders: tuple[Path, ...]) -> bool:
    """Return whether a capture of this name lies in one of the folders; one that does not answer is not waited for."""

    def look() -> bytes:
        found = (folder / f"{name}{end}" for folder in folders for end in (".work", ".partial", ".tar.zst"))
        return b"taken" if any(map(os.path.lexists, found)) else b""

    try:
        return bool(in_child(look, PROBE_SECONDS))
    except (ChildTimedOut, ChildFailed):
        return False


def _on_disk(name: str, good: list[Path], tight: set[Path]) -> Path | None:
    """Make a working folder where the bundle goes, for memory has no room: in the roomiest place that lets us."""
    for place in sorted(good, key=lambda each: each in tight):
        work = place / f"{name}.partial"
        if attempt(_making(work), PROBE_SECONDS):
            return work
    return None


def _making(folder: Path) -> Callable[[], bytes]:
    def make() -> bytes:
        folder.mkdir(mode=0o700)
        return b""

    return make


def _workplace(place: Path, name: str, needs: int) -> Path | None:
    """Make a private folder in memory, or return None where there is no room."""
    made = place / f"{name}.work"
    try:
        there = os.statvfs(place)
        if min(there.f_bavail * there.f_frsize, places.spare_memory()) < needs or not os.access(place, os.W_OK):
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
    try:
        touched: set[Path] = set()
        for parent, folders, files in os.walk(work):
            folders[:] = [folder for folder in folders if not folder.startswith(layout.SCRATCH)]
            there = durable / Path(parent).relative_to(work)
            there.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file in files:
                if not file.endswith(layout.HALF) and _copy_one(Path(parent, file), there / file):
                    touched.update((there, *(durable / each for each in there.relative_to(durable).parents)))
        for folder in (*touched, durable.parent):
            _sync(folder, os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        shutil.rmtree(durable, ignore_errors=True)  # the bundle needs that room
        return FULL
    return b""


def _copy_one(source: Path, copy: Path) -> bool:
    try:
        status = source.stat()
        known = copy.stat()
        if (known.st_size, known.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return False
    except FileNotFoundError:
        if not source.exists():  # it was a file for a moment only
            return False
    status = source.stat()
    if not stat.S_ISREG(status.st_mode):
        return False
    half = copy.with_name(copy.name + layout.HALF)
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
