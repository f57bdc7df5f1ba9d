"""Where evidence lies until it is sealed: at work in memory, and after each step durably on a disk that answers.

The working folder is on tmpfs, so that a step never waits for the disk that the bundle goes to; that disk may be the
one that is stuck. After each step its files are copied to `<place>/<name>.<token>.partial` and fsynced, in a child that
may be abandoned. A place that hangs or refuses is given up for the next one; one that is too small for the copy still
gets the bundle. What lies in memory is not copied to memory again.

Both folders are made by us and held open: whoever may write in the place can neither foresee their names nor lay
anything in them. The durable one is made first, before the other shows the name to whoever lists /dev/shm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import field
from functools import partial
from io import FileIO
from pathlib import Path

from autopsy.bundle import layout
from autopsy.capture.freeze.size_estimate import Estimate, Needs
from autopsy.capture.staging import destination, places
from autopsy.capture.staging.copying import FULL, copy_new, sync_tree
from autopsy.capture.staging.leftovers import begin
from autopsy.capture.staging.places import ScratchPlace, Unusable
from autopsy.capture.staging.settling import Copier, SettlingCopy
from autopsy.dataclass import dataclass
from autopsy.errors import NotStored
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child
from autopsy.linux.handover import opened
from autopsy.linux.spare_memory import lies_in_memory, spare_memory
from autopsy.store.place import store_path

PUT_SECONDS = 2.0
SETTLE_SECONDS = 5.0
ANSWER_SECONDS = 0.2  # for an answer that is there to be read
PROBE_SECONDS = places.PROBE_SECONDS
MODEST = Estimate(Needs(work=96 << 20, bundle=16 << 20))


@dataclass(slots=True)
class Staging:
    """One capture's folders. `work` is complete; `durable` trails it by at most one step, where there is a place.

    `places` are the directories still believed good, the best first; the bundle goes to the first. Those in `tight`
    have room for the bundle and for nothing else. `notes` say why any was given up. `held` is the descriptor of
    `work`, `copies` are those of the durable folders, `tried` places that are not looked at again, and `ours` those
    that were made for this capture alone. `lagging` says that something is not durable yet, for want of time alone.
    """

    name: str
    token: str
    work: Path
    held: int
    places: list[Path]
    notes: list[str] = field(default_factory=list)
    tight: set[Path] = field(default_factory=set)
    in_memory: bool = True
    tried: set[Path] = field(default_factory=set)
    ours: set[Path] = field(default_factory=set)
    copies: dict[Path, int] = field(default_factory=dict)
    settling: SettlingCopy | None = None
    copier: Copier = field(default_factory=Copier)
    lagging: bool = False
    claimed: FileIO | None = None

    @property
    def durable(self) -> Path:
        """Return the folder that survives us: in the best place that has room for it, or the working folder itself."""
        for place in self.places:
            folder = self.copy_in(place)
            if folder == self.work:
                return self.work
            if place not in self.tight:
                return self.work if self.in_memory and lies_in_memory(place) else folder
        return self.work

    def copy_in(self, place: Path) -> Path:
        """Return where the durable folder lies in a place."""
        return place / f"{self.name}.{self.token}{layout.PARTIAL}"

    def folder(self, step: str) -> Path:
        """Make and return a step's evidence folder. Where the disk refuses or hangs, the step will say so."""
        made = self.work / "evidence" / step

        def make() -> bytes:
            os.close(private.enter(self.held, f"evidence/{step}"))
            return b""

        self._do(make, str(made))
        return made

    def put(self, name: str, data: bytes) -> None:
        """Store a file of the capture's own, whole or not at all; never raises and never hangs."""

        def write() -> bytes:
            private.replace(self.held, name, data)  # a copy of it is made at any moment
            return b""

        self._do(write, name)

    def put_evidence(self, step: str, file: str, data: bytes) -> None:
        """Store evidence that is of no step, whole or not at all; never raises and never hangs."""

        def write() -> bytes:
            folder = private.enter(self.held, f"evidence/{step}")
            try:
                private.replace(folder, file, data)
            finally:
                os.close(folder)
            return b""

        self._do(write, layout.evidence(step, file))

    def _do(self, work: Callable[[], bytes], what: str) -> None:
        try:
            if self.in_memory:
                work()
            else:
                in_child(work, PUT_SECONDS)
        except (OSError, ChildTimedOut, ChildFailed) as error:
            self._note(f"{what} could not be written: {error}")

    def claim(self, readme: bytes) -> None:
        """Hold the working folder from its first file on: nobody takes it for one that a killed capture left behind."""
        if not self.in_memory:
            self.put(layout.README, readme)
            return
        try:
            self.claimed = begin(self.work, readme)
            destination.write_down(self.held, self.places)
        except OSError as error:
            self._note(f"{layout.README} could not be written: {error}")

    def give_up(self, place: Path, why: str, *, clean: bool = False) -> None:
        """Stop using a place. The next one gets everything at the next settling. With `clean` our copy is removed."""
        self.places.remove(place)
        if not self.places:
            self._fall_back()
        self._note(f"{place}: {why}; the evidence goes to {self.places[0] if self.places else 'no other place'}")
        if clean and self.copy_in(place) != self.work:
            self._remove(self.copy_in(place))

    def give_up_place(self, why: str) -> None:
        """Stop using the best place."""
        self.give_up(self.places[0], why)

    def _fall_back(self) -> None:
        """Look for another place after the last one was given up."""
        for path in places.fallbacks():
            if path in self.tried:
                continue
            self.tried.add(path)
            match places.probe(path, fallback=True):
                case Unusable(why=why):
                    self._note(f"{path}: {why}")
                case ScratchPlace() as place:
                    self.places.append(place.path)
                    if place.made:
                        self.ours.add(place.path)
                    return

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def settle(self) -> None:
        """Begin to copy what is new to a durable place and fsync it, beside the next step.

        A copy that goes on is let go on: what is new by now goes after it.
        """
        if self.settling is not None and self.settling.goes_on(SETTLE_SECONDS):
            self.lagging = True
            return
        if self.settling is not None:  # it has answered, or hangs
            self._settled(self.settling, SETTLE_SECONDS)
        if self.settling is None:
            self._begin()

    def _begin(self) -> None:
        self.lagging = False
        while self.places:
            durable = self.durable
            if durable == self.work:
                work: Callable[[], bytes] = partial(sync_tree, self.held)
                if self.in_memory:
                    return
            elif (copy := self.hold_copy(durable)) is None:
                continue
            else:
                work = partial(copy_new, self.held, copy)
            try:
                self.settling = self.copier.begin(durable, work)
            except ChildFailed as error:
                self._note(f"the evidence could not be made durable in time: {error}")
            return

    def hold_copy(self, folder: Path) -> int | None:
        """Return the descriptor of a durable folder; None where there can be none: that is told, and its place left."""
        if folder not in self.copies:
            try:
                self.copies[folder] = opened(partial(_made_durably, folder), PROBE_SECONDS)
            except (ChildTimedOut, ChildFailed) as error:
                self._without_copy(folder.parent, error)
                return None
        return self.copies[folder]

    def _without_copy(self, place: Path, why: ChildTimedOut | ChildFailed) -> None:
        """Go on without a copy in this place, or without the place where it does not answer."""
        match why:
            case ChildTimedOut():
                self.give_up(place, str(why))
            case ChildFailed():
                self._note(f"{place}: the evidence is not kept there while it is gathered: {why}")
                self.tight.add(place)

    def settled(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until all is durable, so long for each place. One that is only slow stays where the bundle goes to."""
        while self.settling is not None:
            self._settled(self.settling, seconds)

    def _settled(self, copy: SettlingCopy, seconds: float) -> None:
        """Wait for a copy, and begin the next one that is owed: in the next place if this hangs, refuses or is full.

        How long it has hung already counts.
        """
        self.settling = None
        patience = max(ANSWER_SECONDS, seconds - (time.monotonic() - copy.since))
        durable = self.durable
        place = durable.parent
        try:
            if self.copier.collect(copy, patience) == FULL:
                self._note(f"{place}: too full to keep the evidence while it is gathered")
                self.tight.add(place)
                self._begin()
            elif self.lagging:
                self._begin()
        except ChildTimedOut as error:
            if time.monotonic() - copy.since < seconds / 2:
                self._note(f"{place}: too slow to keep the evidence there while it is gathered")
                self.lagging = True
                return
            self.copies.pop(durable, None)  # nobody waits for its removal
            self.give_up(place, str(ChildTimedOut(seconds, error.left_behind)))
            self._begin()
        except ChildFailed as error:
            self.give_up(place, str(error), clean=True)
            self._begin()

    def make_room(self) -> bool:
        """Remove our copy from the best place, where the bundle finds no room beside it; return whether that is news.

        All of it is in the working folder, too.
        """
        copy = self.copy_in(self.places[0])
        if copy not in self.copies:
            return False
        self.tight.add(self.places[0])
        self._remove(copy)
        return True

    def clear(self) -> None:
        """Remove the folders of a capture that was sealed. A folder that cannot be removed stays; nothing waits."""
        self.settled()
        self._remove(self.work)
        os.close(self.held)
        self.remove_copies()
        if self.claimed is not None:
            self.claimed.close()
            self.claimed = None

    def remove_copies(self) -> None:
        """Remove the durable folders, and the places that were made for them alone."""
        self.copier.end()
        for folder in tuple(self.copies):
            self._remove(folder)
        for place in self.ours:
            places.leave(place)

    def _remove(self, folder: Path) -> None:
        if (descriptor := self.copies.pop(folder, None)) is not None:
            os.close(descriptor)
        if not attempt(_removal(folder), PROBE_SECONDS, here=self.in_memory and folder == self.work):
            self._note(f"{folder} could not be removed")


def attempt(work: Callable[[], bytes], seconds: float, *, here: bool = False) -> bool:
    """Run `work` in a child, or `here` where nothing hangs, and return whether it went well."""
    try:
        work() if here else in_child(work, seconds)
    except (OSError, ChildTimedOut, ChildFailed):
        return False
    return True


def _removal(folder: Path) -> Callable[[], bytes]:
    def remove() -> bytes:
        private.remove(folder)
        return b""

    return remove


def _made_durably(folder: Path) -> int:
    made = private.make(folder)
    with private.anybodys(folder.parent) as place:
        os.fsync(place)
    return made


def prepare(name: str, wanted: tuple[Path, ...], needs: Estimate = MODEST) -> Staging:
    """Make the folders of one capture, after a look at which places answer and have room.

    It goes to the store where no place is wanted.

    Raises:
        NotStored: neither the wanted places nor any fallback can be written to.
    """
    asked_for = tuple(path.absolute() for path in wanted)
    staging = Staging(name, private.token(), Path(), -1, [])
    for path in dict.fromkeys((*asked_for, *places.fallbacks())):
        if staging.places and path not in asked_for:
            break
        staging.tried.add(path)
        match places.probe(path, lambda room: needs.within(room).bundle, fallback=path not in asked_for):
            case Unusable(why=why):
                staging.notes.append(f"{path}: {why}")
            case ScratchPlace() as place:
                _take(staging, place, needs)
    if not staging.places:
        why = "; ".join(staging.notes)
        asked = str(wanted[0] if wanted else store_path())
        raise NotStored(asked, why, remedy="give a directory that can be written to: --out DIR")
    if staging.places[0] not in (asked_for or (store_path(),)):
        staging.notes.append(f"the bundle goes to {staging.places[0]}")
    first = str(staging.places[0])
    _make_the_first_copy(staging)
    if not _make_the_working_folder(staging, needs):
        staging.remove_copies()
        raise NotStored(first, "no folder can be made there", remedy="give a directory with room: --out DIR")
    if needs.note:
        staging.notes.append(needs.note)
    return staging


def _take(staging: Staging, place: ScratchPlace, needs: Estimate) -> None:
    staging.places.append(place.path)
    if place.made:
        staging.ours.add(place.path)
    needed = needs.within(place.room)
    if place.room < needed.work + needed.bundle:
        staging.tight.add(place.path)


def _make_the_first_copy(staging: Staging) -> None:
    """Make the durable folder before anything shows its name."""
    while staging.places:
        place = next((path for path in staging.places if path not in staging.tight), None)
        if place is None or lies_in_memory(place) or staging.hold_copy(staging.copy_in(place)) is not None:
            return


def _make_the_working_folder(staging: Staging, needs: Estimate) -> bool:
    """Make it in memory where there is room, else where the bundle goes: in the roomiest place that lets us."""
    file_name = f"{staging.name}.{staging.token}{layout.WORK}"
    for memory in places.memory_places():
        if (folder := _workplace(memory / file_name, needs)) is not None:
            staging.work, staging.held = memory / file_name, folder
            return True
    staging.in_memory = False
    for place in sorted(staging.places, key=lambda path: path in staging.tight):
        work = staging.copy_in(place)
        if (folder := staging.copies.pop(work, None)) is None:
            try:
                folder = opened(partial(private.make, work), PROBE_SECONDS)
            except (ChildTimedOut, ChildFailed):
                continue
        staging.work, staging.held = work, folder
        return True
    return False


def _workplace(folder: Path, needs: Estimate) -> int | None:
    """Make a private folder in memory, or return None where there is no room."""
    place = folder.parent
    try:
        there = os.statvfs(place)
        room = min(there.f_bavail * there.f_frsize, spare_memory())
        if room < needs.within(room).work or not os.access(place, os.W_OK):
            return None
        return private.make(folder)
    except OSError:
        return None
