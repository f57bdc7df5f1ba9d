"""The host's own limits: a control group that lets the VM read or write next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.queries.kernel_sleepers import Sleeper, device_of, file_of, image_of, mount_of, sleepers
from autopsy.diagnose.queries.requests import (
    counted,
    disks_of,
    lets_go,
    of_disks,
    stand,
    still,
    their_disks,
)
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.model.facts import CoroutineFact, Facts, IoLimit, Park
from autopsy.facts.subjects import Whole

BLOCK_LAYER = "host-block-wait"
PARTITIONS = 16  # minor numbers of one sd or virtio disk
SCATTERED = 259  # the major number of partitions that found no room there, and of every NVMe disk


def _io_limited(facts: Facts) -> Judgement:
    limits = facts.host.io_limits
    if isinstance(limits, Unknown):
        return CannotTell(f"the limits of its control groups: {missing(limits)}")
    if not limits.value:
        return RuledOut("no control group limits what it reads and writes", (limits.cite,))
    seconds = max(1.0, facts.times.gap_seconds)
    slow = [each for each in limits.value if not lets_go(each.value, each.unit, seconds)]
    if not slow:
        words = f"its control group's limits ({_words(limits.value[0])}) let requests go within the time of watching"
        return RuledOut(words, tuple(each.cite for each in limits.value[:3]))
    requests = still(facts, Park.THREADS, Park.LINUX_AIO, Park.IO_URING)
    waiting = sleepers(facts)
    if any(each.family.id != BLOCK_LAYER for each in waiting) or not (requests or waiting):
        return RuledOut("no request waits in the host's block layer", tuple(each.cite for each in slow[:3]))
    devices = _devices(facts, requests)
    on_it = [each for each in slow if any(_on_one_disk(each.device, device) for device in devices)]
    near = [each for each in slow if any(_by_one_driver(each.device, device) for device in devices)]
    if devices and not near:
        return RuledOut(f"it limits other devices: {_words(slow[0])}", tuple(each.cite for each in slow[:3]))
    told = on_it or near or slow
    disks = their_disks(facts, requests)
    number = len(requests) or len(waiting)
    who = f"{counted(facts, requests)} {of_disks(disks)}" if requests else f"{count(number, 'thread')} of QEMU"
    return Match(
        headline=(f"{who} {'waits' if number == 1 else 'wait'} for the host's own limit: {_words(told[0])}"),
        objects=(*disks, subjects.ControlGroup(told[0].group), subjects.HostDevice(told[0].device)),
        confidence="likely" if on_it else "possible",
        claims=(
            *(claim(f"The host lets the VM do no more than this: {_words(each)}.", each.cite) for each in told[:4]),
            *_waiting(requests, counted(facts, requests), waiting, disks),
        ),
        holds=frozenset({Whole.IO_LIMIT, Whole.STORAGE, Whole.REQUESTS} if on_it else ()),
        stands=stand((Park.THREADS, Park.LINUX_AIO, Park.IO_URING), requests, _asleep(facts, waiting)),
        weight=number,
    )


def _asleep(facts: Facts, waiting: tuple[Sleeper, ...]) -> Iterator[subjects.Subject]:
    """Yield where the graph of waits has these threads: in the block layer, for the file systems of what they do."""
    yield subjects.Kernel(BLOCK_LAYER)
    disks = facts.disks.value if isinstance(facts.disks, Known) else ()
    files = [file.target for each in waiting if (file := file_of(facts, each.look)) is not None]
    for path in filter(None, dict.fromkeys((*files, *(image_of(facts, disk) for disk in disks)))):
        if (mount := mount_of(facts, path)) is not None:
            yield from (subjects.Kernel(BLOCK_LAYER, mount.path), subjects.file_system(mount))
        if (device := device_of(facts, path)) is not None:
            yield from (subjects.Kernel(BLOCK_LAYER, device.name), device)


def _devices(facts: Facts, requests: tuple[CoroutineFact, ...]) -> frozenset[str]:
    """Return the block devices below the file systems of the disks' images, as major:minor."""
    disks = {disk.name: disk for request in requests for disk in disks_of(facts, request)}
    if not disks and isinstance(facts.disks, Known):
        disks = {disk.name: disk for disk in facts.disks.value}
    mounts = [mount_of(facts, image) for disk in disks.values() if (image := image_of(facts, disk))]
    return frozenset(mount.device for mount in mounts if mount is not None and mount.device)


def _on_one_disk(one: str, other: str) -> bool:
    """Tell whether two devices are one disk, or its partitions: a limit is set on the disk, and lies below both."""
    (major, minor), (other_major, other_minor) = _numbers(one), _numbers(other)
    if one == other:
        return True
    return major == other_major != SCATTERED and minor // PARTITIONS == other_minor // PARTITIONS


def _by_one_driver(one: str, other: str) -> bool:
    return _numbers(one)[0] == _numbers(other)[0]


def _numbers(device: str) -> tuple[int, int]:
    major, _, minor = device.partition(":")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def _words(limit: IoLimit) -> str:
    verb = "read from" if limit.kind == "read" else "written to"
    return f"{limit.value} {limit.unit} a second {verb} device {limit.device}, by control group {limit.group}"


def _waiting(
    requests: tuple[CoroutineFact, ...],
    how_many: str,
    threads: tuple[Sleeper, ...],
    disks: tuple[subjects.Volume, ...],
) -> Iterator[Claim]:
    if requests:
        words = f"{how_many} {of_disks(disks)} went to the host's kernel, and did not come back"
        yield claim(f"{words}.", *(each.cite for each in requests[:4]))
    if threads:
        words = f"{count(len(threads), 'thread')} of QEMU sleep in its block layer"
        yield claim(f"{words}.", *(each.look.cite for each in threads[:4]))


SIGNATURES = (Signature("cgroup-io-limited", "host", "a control group limits the VM's disk I/O", _io_limited),)
