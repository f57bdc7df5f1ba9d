"""Tells which limits of the VM's control groups hold its requests up, and which devices they are set on."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from autopsy.diagnose.queries.kernel_sleepers import image_of, mount_of, sleepers
from autopsy.diagnose.queries.requests import disks_of, lets_go, still
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import CoroutineFact, Facts, IoLimit, Park

BLOCK_LAYER = "host-block-wait"
PARTITIONS = 16  # minor numbers of one sd or virtio disk
SCATTERED = 259  # the major number of partitions that found no room there, and of every NVMe disk


def binding(facts: Facts) -> tuple[IoLimit, ...]:
    """Return the limits that let no request of QEMU's go within the time that was watched."""
    limits = facts.host.io_limits.value if isinstance(facts.host.io_limits, Known) else ()
    seconds = max(1.0, facts.times.gap_seconds)
    return tuple(limit for limit in limits if not lets_go(limit.value, limit.unit, seconds))


def held_by(facts: Facts) -> tuple[IoLimit, ...]:
    """Return those of them that are set on a device of disks whose requests wait in the host's block layer."""
    slow = binding(facts)
    if not slow or any(asleep.family.id != BLOCK_LAYER for asleep in sleepers(facts)):
        return ()
    requests = still(facts, Park.THREADS, Park.LINUX_AIO, Park.IO_URING)
    if not (requests or sleepers(facts)):
        return ()
    devices = devices_below(facts, requests)
    return tuple(limit for limit in slow if any(is_on_one_disk(limit.device, device) for device in devices))


def devices_below(facts: Facts, requests: tuple[CoroutineFact, ...]) -> frozenset[str]:
    """Return the block devices that the disks' images are, or that lie below their file systems, as major:minor."""
    disks = {disk.name: disk for request in requests for disk in disks_of(facts, request)}
    if not disks and isinstance(facts.disks, Known):
        disks = {disk.name: disk for disk in facts.disks.value}
    images = {image for disk in disks.values() if (image := image_of(facts, disk))}
    if themselves := _that_are(facts, images):
        images = {image for image in images if not image.startswith("/dev/")}
    mounts = [mount_of(facts, image) for image in images]
    return themselves | {mount.device for mount in mounts if mount is not None and mount.device}


def _that_are(facts: Facts, images: AbstractSet[str]) -> frozenset[str]:
    """Return the block devices that are images themselves."""
    opened = facts.descriptors.value if isinstance(facts.descriptors, Known) else ()
    fds = {file.fd for file in opened if file.kind == "block device" and file.target in images}
    devices = facts.host.block_devices.value if isinstance(facts.host.block_devices, Known) else ()
    return frozenset(device.number for device in devices if device.number and not fds.isdisjoint(device.fds))


def is_on_one_disk(one: str, other: str) -> bool:
    """Tell whether two devices are one disk, or its partitions: a limit is set on the disk, and lies below both."""
    (major, minor), (other_major, other_minor) = _numbers(one), _numbers(other)
    if one == other:
        return True
    return major == other_major != SCATTERED and minor // PARTITIONS == other_minor // PARTITIONS


def is_by_one_driver(one: str, other: str) -> bool:
    """Tell whether one driver of the host serves two devices."""
    return _numbers(one)[0] == _numbers(other)[0]


def _numbers(device: str) -> tuple[int, int]:
    major, _, minor = device.partition(":")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
