"""The virtqueues of the guest's disks at both looks: as debug information tells them, else as their shape does."""

from __future__ import annotations

from autopsy.bundle import layout, records
from autopsy.bundle.heap import records as heap_records
from autopsy.bundle.heap.devices import VirtQueue
from autopsy.bundle.heap.virtio import RingsLook, RingWords, VirtioShapes
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, string
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import DiskFact, Queues

BACKEND = "/virtio-backend"
PERIPHERAL = "/machine/peripheral/"
FAMILIES = ("virtio-blk", "virtio-scsi")


def shapes(evidence: Evidence) -> Fact[VirtioShapes]:
    """Return the devices that were found by their shape: as the last look tells them, for it saw both."""
    last = decode(evidence, layout.SECOND_EXPOSURE, layout.VIRTQUEUES, VirtioShapes)
    if isinstance(last, Known) and last.value.second is not None:
        return last
    first = decode(evidence, layout.GDB_THREADS, layout.VIRTQUEUES, VirtioShapes)
    return first if isinstance(first, Known) or isinstance(last, Unknown) else last


def inuse(shaped: Fact[VirtioShapes], path: str) -> Fact[int]:
    """Return how many requests QEMU owes the guest, for a virtio disk that query-block calls by this QOM path."""
    if isinstance(shaped, Unknown):
        return shaped
    for device in shaped.value.first if path.endswith(BACKEND) else ():
        if device.device == _name(path):
            cite = Cite(shaped.cite.file, 0, f"virtio device at {device.address:#x}")
            return Known(sum(queue.inuse for queue in device.queues), cite)
    return Unknown(shaped.cite.file, "no virtio device of this name was found by its shape")


def gather_virtqueues(  # noqa: PLR0917 - every source of a queue, once
    evidence: Evidence,
    heap: Fact[heap_records.HeapSnapshot],
    heap_again: Fact[heap_records.HeapSnapshot],
    shaped: Fact[VirtioShapes],
    disks: Fact[tuple[DiskFact, ...]],
    line: CommandLine,
) -> Fact[Queues]:
    """Return the queues of every virtio disk and SCSI controller. Where one of them was not found, none is told."""
    walked = isinstance(heap, Known) and isinstance(heap_again, Known)
    absent = "" if isinstance(shaped, Unknown) else _absent(shaped.value, disks, line)
    if isinstance(heap, Known) and (walked or absent or isinstance(shaped, Unknown)):
        later = heap_again.value.virtqueues if isinstance(heap_again, Known) else None
        return _queues(evidence, heap.value.virtqueues, later, heap.cite)
    if isinstance(shaped, Unknown):
        return shaped
    if absent:
        return Unknown(shaped.cite.file, absent)
    first, second = (
        None if devices is None else tuple(queue for device in devices for queue in device.queues)
        for devices in (shaped.value.first, shaped.value.second)
    )
    return _queues(evidence, first or (), second, shaped.cite)


def _queues(
    evidence: Evidence, first: tuple[VirtQueue, ...], second: tuple[VirtQueue, ...] | None, cite: Cite
) -> Known[Queues]:
    known = shapes(evidence)
    shaped = known.value.first if isinstance(known, Known) else ()
    shaped_again = (known.value.second if isinstance(known, Known) else None) or ()
    twice = decode(evidence, layout.SECOND_EXPOSURE, layout.EVENTFDS, tuple[records.EventFd, ...])
    again: Fact[tuple[VirtQueue, ...]] = (
        Unknown(cite.file, "there is no second snapshot of them") if second is None else Known(_of_disks(second), cite)
    )
    return Known(
        Queues(
            first=_of_disks(first),
            second=again,
            notifiers=twice.value if isinstance(twice, Known) else (),
            words=_words(evidence, layout.GDB_THREADS),
            words_again=_words(evidence, layout.SECOND_EXPOSURE),
            broken=frozenset(device.device for device in shaped if device.broken),
            still_broken=frozenset(device.device for device in shaped_again if device.broken),
            devices_cite=known.cite if isinstance(known, Known) else Cite(known.evidence),
            words_cite=Cite(layout.evidence(layout.SECOND_EXPOSURE, layout.RING_WORDS)),
            cite=cite,
        ),
        cite,
    )


def _words(evidence: Evidence, step: str) -> tuple[RingWords, ...]:
    look = decode(evidence, step, layout.RING_WORDS, RingsLook)
    return look.value.words if isinstance(look, Known) else ()


def _absent(devices: VirtioShapes, disks: Fact[tuple[DiskFact, ...]], line: CommandLine) -> str:
    """Say which device of this VM was not found; empty where all were."""
    known = {device.device for device in devices.first}
    for disk in disks.value if isinstance(disks, Known) else ():
        if disk.device.endswith(BACKEND) and _name(disk.device) not in known:
            return f"the virtio device {_name(disk.device)} was not found by its shape"
    for family in FAMILIES:
        wanted = sum(string(device, "driver").startswith(family) for device in line.devices)
        if family == FAMILIES[0]:
            wanted += sum(string(drive, "if") == "virtio" for drive in line.drives)
        present = sum(device.device_type.startswith(family) for device in devices.first)
        if present < wanted:
            return f"{present} of {wanted} {family} devices were found by their shape"
    return ""


def _of_disks(queues: tuple[VirtQueue, ...]) -> tuple[VirtQueue, ...]:
    return tuple(queue for queue in queues if queue.device_type.startswith(FAMILIES))


def _name(path: str) -> str:
    return path.removesuffix(BACKEND).removeprefix(PERIPHERAL)
