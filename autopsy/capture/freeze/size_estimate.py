"""How much room the evidence of one process will take, told before anything is taken."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from autopsy.capture.freeze.choose_pages import CAP_BYTES, address_space, choose
from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

ESTIMATE_SECONDS = 1.0  # the memory map may be locked for ever
REST = 32 << 20  # all that is no core, with what gdb and the heap walk need meanwhile
PACKED = 4  # a core packs to a tenth, and to a fourth where much of it is guest data


@dataclass(frozen=True, slots=True)
class Needs:
    """`work` bytes while the evidence is gathered, `bundle` bytes once it is packed; both rather too many.

    `note` says why it is a guess.
    """

    work: int
    bundle: int
    note: str = ""


@dataclass(slots=True)
class Estimate:
    """The room for one capture's evidence, as exact as it has to be: `most` that it can be, unless that does not fit.

    `measure` takes as long as the VM has threads, and its mappings' lock: most hosts have room for the most. Without it
    the most is what is needed.
    """

    most: Needs
    measure: Callable[[], Needs] | None = None
    measured: Needs | None = None

    def within(self, room: int) -> Needs:
        """Return what is needed, measured where so many bytes may be too few; once measured, it is that everywhere."""
        if self.measure is not None and self.measured is None and room < self.most.work + self.most.bundle:
            self.measured = self.measure()
        return self.measured or self.most

    @property
    def note(self) -> str:
        """Return why it is a guess, empty where it is none."""
        return self.measured.note if self.measured else ""


def estimate(pid: int, ram_sizes: tuple[int, ...]) -> Estimate:
    """Return the room for one capture without the guest RAM that `ram_sizes` tell of; never raises."""
    return Estimate(_with_all_else(min(CAP_BYTES, _resident(pid))), partial(needs, pid, ram_sizes))


def needs(pid: int, ram_sizes: tuple[int, ...]) -> Needs:
    """Measure the room for one capture without the guest RAM that `ram_sizes` tell of; never raises.

    A map that cannot be read in time makes it the most there is.
    """
    note = ""
    try:
        core = int(in_child(lambda: str(_core_bytes(pid, ram_sizes)).encode(), ESTIMATE_SECONDS))
    except (ChildTimedOut, ChildFailed) as error:
        core = min(CAP_BYTES, _resident(pid))
        note = f"the room for the evidence is a guess: the memory map gave {error}"
    return _with_all_else(core, note)


def _with_all_else(core: int, note: str = "") -> Needs:
    # The second snapshot's core holds what differs from the first: seldom a tenth of it, half of it at worst.
    return Needs(work=core + core // 2 + REST, bundle=core // PACKED + REST // PACKED, note=note)


def _core_bytes(pid: int, ram_sizes: tuple[int, ...]) -> int:
    mappings, ram = address_space(f"/proc/{pid}", ram_sizes)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sum(want.size for want in choose(mappings, ram, pagemap, -1).wanted)
    finally:
        os.close(pagemap)


def _resident(pid: int) -> int:
    """Return the anonymous memory of the process, the guest's included: /proc/PID/status takes no lock of the map."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/status", encoding="utf-8") as stream:
        return sum(int(line.split()[1]) << 10 for line in stream if line.startswith(("RssAnon:", "VmSwap:")))
    return CAP_BYTES
