"""What is said of a disk's queues where no debug information tells of them, but their shape does."""

from __future__ import annotations

from typing import Any
from unittest.mock import ANY

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.virtio import VirtioDevice, VirtioShapes
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import EventFd
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.gather import gather_facts
from support import lab
from support.built import evidence as e
from support.built import families as cases
from support.verdicts import captured
from tests.examine.heap import test_virtqueues

SIGNATURES = ("virtqueue-notify-off", "virtqueue-kick-lost", "virtqueue-interrupt-lost")


def shaped(
    case: e.Case,
    *,
    two: bool = True,
    heard: bool | None = False,
    count_again: int = 1,
    broken: bool = False,
    **later: Any,
) -> e.Fake:
    """Return the case with its queues known by their shape alone; `later` is what changed of them since."""
    assert case.heap is not None
    queues = case.heap.virtqueues
    case.heap = case.heap_again = None
    device = VirtioDevice(
        address=0x100, device="vd0", device_type="virtio-blk-device", broken=broken, vhost_started=False, queues=queues
    )
    again = msgspec.structs.replace(device, queues=tuple(msgspec.structs.replace(each, **later) for each in queues))
    shapes = VirtioShapes(first=(device,), second=(again,) if two else None)
    fake = case.bundle()
    fds = tuple(
        EventFd(fd=fd, count=1, polled=heard, count_again=count_again, polled_again=heard) for fd in case.descriptors
    )
    fake.files[layout.evidence(layout.SECOND_EXPOSURE, layout.VIRTQUEUES)] = msgspec.json.encode(shapes)
    fake.files[layout.evidence(layout.SECOND_EXPOSURE, layout.EVENTFDS)] = msgspec.json.encode(fds)
    return fake


def told(bundle: e.Fake) -> Diagnosis:
    return diagnose(gather_facts(bundle))


def undecided(found: Diagnosis) -> set[str]:
    return {each.signature for each in found.cannot_tell}


def test_a_kick_that_nobody_hears_is_told_by_the_shape_of_the_queue() -> None:
    found = told(shaped(cases.virtqueue(host_fd=30)))
    assert (found.where, found.signature) == ("device", "virtqueue-kick-lost")


@pytest.mark.parametrize(
    "more",
    [{"heard": True}, {"count_again": 0}, {"last_avail_idx": 41}, {"inuse": 1, "last_avail_idx": 41}],
    ids=["a thread sleeps on it", "somebody has read it since", "QEMU took requests since", "QEMU works on one"],
)
def test_a_kick_that_is_heard_is_no_lost_one(more: dict[str, Any]) -> None:
    found = told(shaped(cases.virtqueue(host_fd=30), **more))
    assert found.signature not in SIGNATURES
    assert not undecided(found) & set(SIGNATURES)


def test_a_kick_that_an_io_uring_may_hear_is_not_called_lost() -> None:
    found = told(shaped(cases.virtqueue(host_fd=30), heard=None))
    assert found.signature not in SIGNATURES
    assert "virtqueue-kick-lost" in undecided(found)


def test_a_device_that_is_marked_broken_is_the_cause_and_proven_by_two_looks() -> None:
    found = told(shaped(cases.virtqueue(), broken=True))
    assert (found.where, found.signature, found.confidence) == ("device", "virtio-device-broken", "proven")
    assert found.objects == ("vd0",)
    once = told(shaped(cases.virtqueue(), broken=True, two=False))
    assert (once.signature, once.confidence) == ("virtio-device-broken", "likely")
    assert told(shaped(cases.virtqueue())).where == "none"


def test_an_interrupt_that_is_not_taken_is_told_by_the_shape_of_the_queue() -> None:
    assert told(shaped(cases.virtqueue(guest_fd=31))).signature == "virtqueue-interrupt-lost"
    assert told(shaped(cases.virtqueue(guest_fd=31), count_again=0)).signature not in SIGNATURES


def test_kicks_that_are_off_are_told_only_where_a_loop_sleeps_on_them() -> None:
    asleep = cases.virtqueue(notification=False, host_fd=30)
    assert told(shaped(asleep, heard=True, count_again=0)).signature == "virtqueue-notify-off"
    unknown = told(shaped(cases.virtqueue(notification=False), heard=None))
    assert unknown.signature not in SIGNATURES
    assert "virtqueue-notify-off" in undecided(unknown)
    back = told(shaped(cases.virtqueue(notification=False, host_fd=30), heard=True, count_again=0, notification=True))
    assert back.signature not in SIGNATURES


def test_a_queue_that_no_guest_has_set_up_hides_nothing() -> None:
    never = cases.virtqueue()
    assert never.heap is not None
    queues = tuple(
        msgspec.structs.replace(queue, host_notifier_fd=0, guest_notifier_fd=0) for queue in never.heap.virtqueues
    )
    never.heap = msgspec.structs.replace(never.heap, virtqueues=queues)
    found = told(shaped(never))
    assert found.where == "none", found.headline
    assert not undecided(found) & set(SIGNATURES)


def test_one_look_at_a_queue_decides_nothing() -> None:
    found = told(shaped(cases.virtqueue(host_fd=30), two=False))
    assert found.signature not in SIGNATURES
    assert set(SIGNATURES) <= undecided(found)


def test_no_queue_is_told_where_one_of_the_disks_was_not_found() -> None:
    case = cases.virtqueue(host_fd=30)
    case.command_line = ("-device", "virtio-blk-pci,id=vd0", "-device", "virtio-blk-pci,id=vd1")
    facts = gather_facts(shaped(case))
    assert isinstance(facts.virtqueues, Unknown)
    assert "1 of 2" in facts.virtqueues.why
    assert set(SIGNATURES) <= undecided(diagnose(facts))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"first": 1}', b"\xff", b"[" * 100_000])
def test_shapes_that_cannot_be_read_are_unknown_or_none(data: bytes) -> None:
    fake = shaped(cases.virtqueue(host_fd=30))
    fake.files[layout.evidence(layout.SECOND_EXPOSURE, layout.VIRTQUEUES)] = data
    assert told(fake).signature not in SIGNATURES


@pytest.mark.live
@pytest.mark.parametrize("build", lab.qemu_builds(), ids=lambda build: build.label)
def test_a_guest_whose_writes_wait_has_no_queue_that_lost_anything(build: lab.Build) -> None:
    """Its virtio-blk disk has three queues, of which its one vCPU uses one; its SCSI controller's are idle."""
    with test_virtqueues.guest_that_waits(lab.build(build.label)) as machine, lab.folder() as place:
        captured(machine.pid, place)
        (bundle,) = place.glob("*.tar.zst")
        facts = gather_facts(open_bundle(bundle))
    found = diagnose(facts)
    assert isinstance(facts.disks, Known)
    assert [disk.in_flight for disk in facts.disks.value if disk.name == "vd0"] == [Known(4, ANY)]
    assert found.where == "throttle", found
    assert not {each.signature for each in found.secondary} & set(SIGNATURES), found
    assert not undecided(found) & set(SIGNATURES), found
