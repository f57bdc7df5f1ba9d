"""Seals what a capture has staged in the best place that still answers, and puts its report beside the bundle."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.seal import PackedAhead, Sealed, pack_ahead, seal_in
from autopsy.capture.pace import STARVED, Pace, in_child_behind
from autopsy.capture.staging.staging import Staging
from autopsy.capture.step import Deadline, Options
from autopsy.dataclass import dataclass
from autopsy.errors import NotStored
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks.behind import step_back
from autopsy.linux.tasks.forking import Child, end
from autopsy.linux.trouble import FailureKind

REPORT_SECONDS = 8.0
SEAL_SECONDS = 20.0
LEAST_SECONDS = 3.0
AHEAD_SHARE = 0.5  # of the budget that is left, which packing ahead may take of the seal's
MOST_AHEAD = 48 << 20  # bytes of a core: it lies in memory once more then, and may be of what cannot be compressed


@dataclass(slots=True)
class AheadPacker:
    """A child that packs what is complete already, beside whatever is done meanwhile; None where there is none."""

    child: Child | None
    look: Callable[[], None]

    def packed(self, seconds: float) -> PackedAhead | None:
        """Wait for it so long, and return what it has packed; None where it has not: then the seal packs all."""
        if self.child is None:
            return None
        child, self.child = self.child, None
        with suppress(ChildTimedOut, ChildFailed, msgspec.DecodeError):
            return msgspec.json.decode(collect(child, seconds, self.look), type=PackedAhead)
        return None

    def give_up(self) -> None:
        """End it."""
        if self.child is not None:
            end(self.child)
            self.child = None


def begin_to_pack(staging: Staging, manifest: Manifest, options: Options, pace: Pace) -> AheadPacker:
    """Begin to pack all that is complete before there is a diagnosis, where there is a CPU for that."""
    leave_out, back = _left_out(options), pace.may_wait()

    def work() -> bytes:
        if back:
            step_back()
        return msgspec.json.encode(pack_ahead(staging.work, manifest, leave_out))

    if pace.slowness < STARVED and len(os.sched_getaffinity(0)) > 1:
        with suppress(OSError, ChildFailed):
            if (staging.work / layout.CORE).stat().st_blocks * 512 <= MOST_AHEAD:
                child = spawn(work)
                return AheadPacker(child, pace.watch_over(child.pid) if back else _nothing)
    return AheadPacker(None, _nothing)


def _nothing() -> None:
    """Look at nothing."""


def _left_out(options: Options) -> frozenset[str]:
    return frozenset() if options.core else frozenset({layout.CORE})


def seal_staged(
    staging: Staging, manifest: Manifest, budget: Deadline, options: Options, pace: Pace, *, packer: AheadPacker
) -> Sealed:
    """Seal in the best place that still answers; what the `packer` has packed is not packed again.

    On a starved host it may take all that is left of the budget, and a while longer: nothing else keeps the evidence.

    Raises:
        NotStored: none does.
    """
    leave_out = _left_out(options)
    ahead = packer.packed(min(SEAL_SECONDS, budget.left() * AHEAD_SHARE))
    last_words = "no place left"
    starved = pace.slowness >= STARVED
    most, least = (budget.left(), SEAL_SECONDS) if starved else (SEAL_SECONDS, LEAST_SECONDS)
    while staging.places:
        try:
            data = in_child_behind(
                partial(_sealed_bytes, staging, _with_notes(manifest, staging), leave_out, ahead),
                max(least, min(most, budget.left())),
                pace,
            )
        except ChildFailed as error:
            last_words = str(error)
            if error.trouble is not FailureKind.FULL or not staging.make_room():
                staging.give_up_place(last_words)
        except ChildTimedOut as error:
            least = LEAST_SECONDS  # that place has had its while
            last_words = str(error)
            staging.give_up_place(last_words)
        else:
            return msgspec.json.decode(data, type=Sealed, dec_hook=_path)
    raise NotStored(
        f"{staging.name}.tar.zst",
        f"the bundle could not be stored anywhere ({last_words})",
        remedy=f"nothing was killed; the evidence lies in {staging.work}: free some space, then `autopsy seal` it",
    )


def _with_notes(manifest: Manifest, staging: Staging) -> Manifest:
    return msgspec.structs.replace(manifest, notes=tuple(staging.notes))


def _sealed_bytes(staging: Staging, manifest: Manifest, leave_out: frozenset[str], ahead: PackedAhead | None) -> bytes:
    sealed = seal_in(staging.places[0], staging.name, staging.work, manifest, leave_out, ahead=ahead)
    return msgspec.json.encode(sealed, enc_hook=str)


def _path(_: type, value: object) -> Path:
    return Path(str(value))


@dataclass(frozen=True, slots=True)
class BesideBundle:
    """A report that is being put beside the bundle, in a child, for the disk may hang; none where there is no page."""

    copy: Path
    child: Child | None
    why: str = ""

    def placed(self, budget: Deadline, notes: list[str]) -> Path | None:
        """Return where it is. Where it cannot be, a note says why, and the report is in the bundle alone."""
        why = self.why
        if self.child is not None:
            try:
                collect(self.child, min(REPORT_SECONDS, max(1.0, budget.left())))
            except ChildTimedOut:
                notes.append(f"the report is in the bundle alone: {self.copy.parent} does not answer")
                return None
            except ChildFailed as error:
                why = str(error)
            else:
                return self.copy
        if why:
            notes.append(f"the report is in the bundle alone: {self.copy}: {why}")
        return None


def put_beside(page: bytes, copy: Path) -> BesideBundle:
    """Begin to put the report beside the bundle, for those who will not unpack anything."""
    if not page:
        return BesideBundle(copy, None)

    def work() -> bytes:
        private.publish(copy, page)
        return b""

    try:
        return BesideBundle(copy, spawn(work))
    except ChildFailed as error:
        return BesideBundle(copy, None, str(error))
