"""Virtio devices as their shape in memory tells them, without symbols: the same queues that a heap walk tells."""

from __future__ import annotations

import msgspec

from autopsy.bundle.heap.devices import VirtQueue


class VirtioDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A VirtIODevice. `broken` and `vhost_started` are None where their place could not be told for certain."""

    address: int
    device: str
    device_type: str
    broken: bool | None
    vhost_started: bool | None
    queues: tuple[VirtQueue, ...]


class VirtioShapes(msgspec.Struct, frozen=True, kw_only=True):
    """Every virtio device that was found. `second` is None without a second exposure.

    `notes` tell what looked like a device's queues and is left out, because something about it does not fit.
    """

    first: tuple[VirtioDevice, ...] = ()
    second: tuple[VirtioDevice, ...] | None = None
    notes: tuple[str, ...] = ()
    ms: float = 0
