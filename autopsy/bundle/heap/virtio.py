"""Virtio devices as their shape in memory tells them, without symbols: the same queues that a heap walk tells."""

from __future__ import annotations

import msgspec

from autopsy.bundle.heap.devices import VirtQueue


class RingPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where the two index words of a split ring lie, as addresses of the process: two bytes each."""

    index: int
    avail: int
    used: int


class VirtioDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A VirtIODevice. `broken` and `vhost_started` are None where their place could not be told for certain.

    `rings` are the queues whose rings are split and lie in one piece of guest memory.
    """

    address: int
    device: str
    device_type: str
    broken: bool | None
    vhost_started: bool | None
    queues: tuple[VirtQueue, ...]
    rings: tuple[RingPlace, ...] = ()


class VirtioShapes(msgspec.Struct, frozen=True, kw_only=True):
    """Every virtio device that was found. `second` is None without a second snapshot.

    `notes` tell what looked like a device's queues and is left out, because something about it does not fit.
    """

    first: tuple[VirtioDevice, ...] = ()
    second: tuple[VirtioDevice, ...] | None = None
    notes: tuple[str, ...] = ()
    ms: float = 0


class RingWords(msgspec.Struct, frozen=True, kw_only=True):
    """The two index words of one ring in the guest's memory: what the guest has made available, what QEMU gave back."""

    device: str
    index: int
    avail_idx: int
    used_idx: int


class RingsLook(msgspec.Struct, frozen=True, kw_only=True):
    """The index words of every ring at one look, after its snapshot. `left_out` says why some were not read."""

    taken_ns: int
    words: tuple[RingWords, ...] = ()
    left_out: tuple[str, ...] = ()
    more: int = 0  # rings beyond as many as are read
