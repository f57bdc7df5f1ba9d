"""The last finished round as bytes: what metrics are made of, and what `ps` reads while a watch runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import replace

import msgspec

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.files.plain import NotPlain
from autopsy.linux.files import read_plain
from autopsy.text import visible
from autopsy.watch import ring
from autopsy.watch.model import Round, WatchedVm

MOST_WORDS = 120  # of a name that whoever made the VM chose
MOST_BYTES = 64 << 20
FILE = "state.json"  # in the run folder, beside the rings
FRESH_SECONDS = 15.0  # some rounds: an older one is of a watch that does not come round, or has ended
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFigures:
    """What the watch itself takes of the host. `started_at` is in seconds since the epoch."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_descriptors: int = 0
    started_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSnapshot:
    """A finished round, and what it cost so far."""

    round: Round
    own: OwnFigures = OwnFigures()


def bounded(words: str) -> str:
    """Return a stranger's words on one visible line and not too long; long ones still differ where they differed."""
    if len(words) <= MOST_WORDS and words.isascii() and words.isprintable():
        return words
    shown = visible(words[: MOST_WORDS + 1])
    if len(shown) <= MOST_WORDS:
        return shown
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{shown[: MOST_WORDS - 9]}~{digest}"


def own_figures() -> OwnFigures:
    """Return what this process takes; asked once a round, so that a scrape needs no look at /proc."""
    with open("/proc/self/statm", "rb") as stream:
        resident = int(stream.read().split()[1]) * PAGE
    with open("/proc/self/stat", "rb") as stream:
        since_boot = int(stream.read().rpartition(b")")[2].split()[19]) / TICKS
    return OwnFigures(
        cpu_seconds=time.process_time(),
        resident_bytes=resident,
        open_descriptors=len(os.listdir("/proc/self/fd")),
        started_at=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot,
    )


def encode(snapshot: WatchSnapshot) -> bytes:
    """Return a snapshot as JSON, every name in it bounded and made visible."""
    vms = tuple(_clean(vm) for vm in snapshot.round.vms)
    return msgspec.json.encode(replace(snapshot, round=replace(snapshot.round, vms=vms)))


def decode(data: bytes) -> WatchSnapshot:
    """Return the snapshot that these bytes are.

    Raises:
        msgspec.MsgspecError: they are none.
        UnicodeDecodeError: likewise.
    """
    return msgspec.json.decode(data, type=WatchSnapshot)


def write(folder: int, data: bytes) -> None:
    """Write the state file into the run folder that is held; a full /run costs it, and nothing else."""
    with contextlib.suppress(OSError):
        private.replace(folder, FILE, data)


def remove(folder: int) -> None:
    """Remove the state file, at the watch's end."""
    with contextlib.suppress(OSError):
        os.unlink(FILE, dir_fd=folder)


def last_round() -> Round | None:
    """Return the last round of a watch that runs now; None where none does, or where its folder is not ours."""
    last = left_round()
    return last if last is not None and abs(time.time() - last.at) < FRESH_SECONDS else None


def left_round() -> Round | None:
    """Return the last round that a watch has left, also one that was killed; None where there is none of ours."""
    place = ring.run_folder()
    try:
        os.close(private.hold(place))
        return decode(read_plain(place / FILE, MOST_BYTES)).round
    except (OSError, NotPlain, ValueError):  # msgspec's errors are ValueErrors
        return None


def _clean(vm: WatchedVm) -> WatchedVm:
    return replace(
        vm,
        name=bounded(vm.name),
        target=bounded(vm.target),
        domain=bounded(vm.domain),
        vmid=bounded(vm.vmid),
        uuid=bounded(vm.uuid),
        namespace=bounded(vm.namespace),
        qemu_version=bounded(vm.qemu_version),
        silent_disks=tuple(replace(disk, name=bounded(disk.name)) for disk in vm.silent_disks),
    )
