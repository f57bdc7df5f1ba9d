"""The last finished round as bytes: what metrics are made of, and what `ps` reads while a watch runs."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace

import msgspec

from autopsy.text import visible
from autopsy.watch.model import Round, WatchedVm

MOST_WORDS = 120  # of a name that whoever made the VM chose
MOST_BYTES = 64 << 20
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
    )
