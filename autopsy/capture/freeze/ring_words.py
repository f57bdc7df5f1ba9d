"""Read the two index words of each disk's rings in the guest's memory, four bytes a queue and nothing else of it.

How far the guest's driver has come is written nowhere else, and it alone shows a request that QEMU was never told of.
"""

from __future__ import annotations

import struct
import time
from contextlib import suppress

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.heap.virtio import RingsLook, RingWords, VirtioDevice, VirtioShapes
from autopsy.capture.reading.procfs import ProcessEnded, held
from autopsy.capture.step import Scene
from autopsy.linux.mappings import MappedProcess
from autopsy.linux.tasks.present_memory import opened_memory, read_present
from autopsy.linux.tasks.priority import Unpreempted

FAMILIES = ("virtio-blk", "virtio-scsi")
MOST_RINGS = 4096
MOST_LEFT_OUT = 20
WORD = struct.Struct("<H")


class NotThere(Exception):
    """The page of a word is not in memory (to read it is to wait for whoever brings it), or cannot be read."""


def collect_ring_words(scene: Scene) -> None:
    """Read the words where this step's virtqueues.json has them, and write ring-words.json; without rings, nothing."""
    devices = _devices(scene) or ()
    if not any(device.rings for device in devices):
        return
    words: list[RingWords] = []
    left_out: list[str] = []
    try:
        with held(scene.target) as proc, opened_memory(proc.pid, proc.path) as process:
            _read(process, devices, words, left_out)
    except (OSError, ProcessEnded) as error:
        left_out.append(f"the rings' words could not be read: {getattr(error, 'strerror', None) or error}")
    look = RingsLook(
        taken_ns=time.monotonic_ns(),
        words=tuple(words),
        left_out=tuple(left_out[:MOST_LEFT_OUT]),
        more=max(0, sum(len(device.rings) for device in devices) - MOST_RINGS),
    )
    with suppress(OSError):  # a full disk: what the step has stored before is worth more than these words
        scene.write_json(layout.RING_WORDS, look)


def are_settled(scene: Scene) -> bool:
    """Return whether this step's rings are known, and their words stored where it has any."""
    devices = _devices(scene)
    if devices is None:
        return False
    return bool(scene.earlier(scene.step, layout.RING_WORDS)) or not any(device.rings for device in devices)


def _devices(scene: Scene) -> tuple[VirtioDevice, ...] | None:
    """Return the disks and controllers as the newest snapshot has them, None where nothing tells yet."""
    try:
        shapes = msgspec.json.decode(scene.earlier(scene.step, layout.VIRTQUEUES), type=VirtioShapes)
    except msgspec.DecodeError:
        return None
    newest = shapes.first if shapes.second is None else shapes.second
    return tuple(device for device in newest if device.device_type.startswith(FAMILIES))


def _read(
    process: MappedProcess, devices: tuple[VirtioDevice, ...], words: list[RingWords], left_out: list[str]
) -> None:
    for device in devices:
        for ring in device.rings:
            if len(words) == MOST_RINGS:
                left_out.append(f"only {MOST_RINGS} rings are read")
                return
            try:
                with Unpreempted():
                    avail, used = _word(process, ring.avail), _word(process, ring.used)
            except NotThere as error:
                left_out.append(f"queue {ring.index} of {device.device}: {error}")
                continue
            words.append(RingWords(device=device.device, index=ring.index, avail_idx=avail, used_idx=used))


def _word(process: MappedProcess, address: int) -> int:
    data = b"" if address % WORD.size else read_present(process, address, WORD.size)
    if len(data) < WORD.size:
        raise NotThere("its page is not in memory, or cannot be read")
    return int(WORD.unpack(data)[0])
