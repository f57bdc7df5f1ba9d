"""The two index words of a disk's ring, which tell of requests that QEMU does not know of."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.virtio import RingsLook, RingWords, VirtioDevice, VirtioShapes
from autopsy.bundle.reader import open_bundle
from autopsy.bundle.records import EventFd
from autopsy.capture.freeze import ring_words
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.heap import virtqueues, vrings
from autopsy.facts.gather import gather_facts
from autopsy.linux.tasks.present_memory import opened_memory
from support import lab, snapshot
from support.built import evidence as e
from support.built import families as cases
from support.verdicts import captured
from tests.examine import test_hostile_core as by_hand

KICK = "virtqueue-kick-lost"
FD = 30
RAM = 0x7F00_0000_0000


@contextmanager
def idle_guest(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest has probed its virtio-blk disk, which an iothread serves, and its SCSI disk; it does no I/O."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-object", "iothread,id=io0"),
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,iothread=io0,id=vd0,drive=disk0"),
            *("-drive", f"if=none,id=disk1,file={lab.disk(place / 'e.raw')},format=raw"),
            *("-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,id=sd0,drive=disk1,bus=scsi0.0"),
        ) as machine,
    ):
        yield machine


def judged(machine: lab.Machine) -> tuple[Diagnosis, list[RingsLook]]:
    """Capture a machine; return what is said of it, and the words of its rings at both looks."""
    with lab.folder() as place:
        captured(machine.pid, place)
        (path,) = place.glob("*.tar.zst")
        bundle = open_bundle(path)
        looks = [
            msgspec.json.decode(bundle.read(layout.evidence(step, layout.RING_WORDS)), type=RingsLook)
            for step in (layout.GDB_THREADS, layout.SECOND_EXPOSURE)
        ]
        return diagnose(gather_facts(bundle)), looks


@pytest.mark.live
@pytest.mark.parametrize("build", lab.qemu_builds(), ids=lambda build: build.label)
def test_a_request_that_no_kick_tells_of_is_found_and_an_idle_disk_has_none(build: lab.Build) -> None:
    """The guest's index is moved on by our own hand, as if its driver had put a request there and the kick got lost."""
    with idle_guest(lab.build(build.label)) as machine:
        healthy, looks = judged(machine)
        with snapshot.exposed(machine) as exposed:
            shapes = _shapes(exposed)
        place = next(device for device in shapes.first if device.device == "vd0").rings[0].avail
        with open(f"/proc/{machine.pid}/mem", "r+b", buffering=0) as memory:
            before = struct.unpack("<H", os.pread(memory.fileno(), 2, place))[0]
            os.pwrite(memory.fileno(), struct.pack("<H", (before + 1) % 65536), place)
            try:
                wedged, _ = judged(machine)
            finally:
                os.pwrite(memory.fileno(), struct.pack("<H", before), place)
    assert healthy.where == "none", healthy.headline
    assert {each.signature for each in healthy.ruled_out} >= {KICK}
    for look in looks:
        assert look.left_out == ()
        by_name = {(word.device, word.index): word for word in look.words}
        assert by_name.keys() == {("vd0", 0), ("scsi0", 0), ("scsi0", 1), ("scsi0", 2)}
        for key in (("vd0", 0), ("scsi0", 2)):
            assert by_name[key].avail_idx == by_name[key].used_idx > 0
        # Where a guest waits for events, it is always ahead.
        assert by_name["scsi0", 1].avail_idx > by_name["scsi0", 1].used_idx == 0
    assert (wedged.where, wedged.signature) == ("device", KICK), wedged.headline
    assert wedged.headline.startswith("1 request waits in queue 0 of vd0")


def told(*, words: tuple[tuple[int, int], tuple[int, int]] = ((43, 40), (43, 40)), **more: Any) -> Diagnosis:
    """Diagnose a queue whose last request was number 40, with these (available, used) words at both looks."""
    case = cases.virtqueue(host_fd=FD, notification=more.get("notification", True))
    assert case.heap is not None
    queues = tuple(msgspec.structs.replace(queue, **more.get("queue", {})) for queue in case.heap.virtqueues)
    case.heap = case.heap_again = None
    case.info[FD] = "pos:\t0\neventfd-count:                0\n"
    if status := more.get("status"):
        case.exchanges.clear()
        case.monitor(status)
    device = VirtioDevice(
        address=0x100,
        device="vd0",
        device_type=queues[0].device_type,
        broken=more.get("broken", False),
        vhost_started=False,
        queues=queues,
    )
    later = msgspec.structs.replace(
        device, queues=tuple(msgspec.structs.replace(each, **more.get("later", {})) for each in queues)
    )
    count, polled = more.get("count", 0), more.get("polled", True)
    fds = (EventFd(fd=FD, count=count, polled=polled, count_again=count, polled_again=polled),)
    fake: e.Fake = case.bundle()
    shapes = VirtioShapes(first=(device,), second=(later,))
    fake.files[layout.evidence(layout.SECOND_EXPOSURE, layout.VIRTQUEUES)] = msgspec.json.encode(shapes)
    fake.files[layout.evidence(layout.SECOND_EXPOSURE, layout.EVENTFDS)] = msgspec.json.encode(fds)
    for step, (avail, used) in zip((layout.GDB_THREADS, layout.SECOND_EXPOSURE), words, strict=True):
        word = RingWords(device="vd0", index=queues[0].index, avail_idx=avail, used_idx=used)
        fake.files[layout.evidence(step, layout.RING_WORDS)] = msgspec.json.encode(RingsLook(taken_ns=1, words=(word,)))
    return diagnose(gather_facts(fake))


def test_requests_that_qemu_was_never_told_of_are_a_lost_kick() -> None:
    found = told()
    assert (found.where, found.signature, found.confidence) == ("device", KICK, "likely")
    assert found.headline.startswith("3 requests wait in queue 0 of vd0")
    assert told(polled=None).signature == KICK  # an io_uring may sleep on it


def test_indices_are_compared_where_they_wrap() -> None:
    at_the_end = {"last_avail_idx": 65535, "used_idx": 65535, "shadow_avail_idx": 65535, "signalled_used": 65535}
    found = told(words=((1, 65535), (1, 65535)), queue=at_the_end)
    assert found.headline.startswith("2 requests wait")


@pytest.mark.parametrize(
    "more",
    [
        {"words": ((40, 40), (40, 40))},
        {"words": ((40, 40), (43, 40))},
        {"words": ((43, 40), (40, 40))},
        {"words": ((43, 39), (43, 39))},
        {"words": ((39, 40), (39, 40))},
        {"later": {"last_avail_idx": 43}},
        {"queue": {"inuse": 1}},
        {"queue": {"host_notifier_enabled": False}},
        {"queue": {"device_type": "virtio-scsi-device", "index": 1}},
        {"notification": False},
        {"broken": True},
        {"status": "paused"},
        {"polled": False},
    ],
    ids=[
        "nothing is there",
        "it came after the first look",
        "the guest took it back",
        "the other word is not QEMU's",
        "the guest is behind",
        "QEMU has taken it since",
        "QEMU works on one",
        "the device does not run",
        "a SCSI controller's events",
        "its kicks are off",
        "the device is broken",
        "the VM is paused",
        "its thread does not sleep",
    ],
)
def test_what_else_may_be_behind_a_request_is_no_lost_kick(more: dict[str, Any]) -> None:
    assert told(**more).signature != KICK


def caches(size: int, *, apart: int = 112, event: int = 2, packed: bool = False, shift: int = 0) -> bytes:
    """Return a VRingMemoryRegionCaches over a ring at the guest's address 0x1000."""
    lengths = (16 * size, 4 if packed else 4 + 2 * size + event, 4 if packed else 4 + 8 * size + event)
    data = bytes(16)
    for number, (address, length) in enumerate(zip((0x1000, 0x2000, 0x3000), lengths, strict=True)):
        moved = shift if number == 2 else 0
        data += struct.pack("<3Q", RAM + address + moved, address + moved, length).ljust(apart, b"\0")
    return data.ljust(vrings.SIZE, b"\0")


def place(data: bytes, size: int = 256) -> tuple[int, int] | None:
    core = Core.of(by_hand.whole(data))
    found = vrings.place(core, 0, size, by_hand.HEAP, (0x1000, 0x2000, 0x3000))
    return (found.avail - RAM, found.used - RAM) if found else None


@pytest.mark.parametrize("apart", [96, 112, 128])
@pytest.mark.parametrize("event", [0, 2])
def test_a_split_ring_s_words_are_found_by_its_lengths(apart: int, event: int) -> None:
    assert place(caches(256, apart=apart, event=event)) == (0x2002, 0x3002)


@pytest.mark.parametrize(
    "data",
    [
        caches(256, packed=True),
        caches(128),
        caches(256, shift=8),
        b"",
        bytes(vrings.SIZE),
        b"\xff" * vrings.SIZE,
        caches(256).replace(struct.pack("<Q", RAM + 0x2000), struct.pack("<Q", 0)),
        caches(256).replace(struct.pack("<Q", RAM + 0x2000), struct.pack("<Q", by_hand.HEAP)),
    ],
    ids=[
        "packed",
        "another size",
        "not where the guest says",
        "absent",
        "empty",
        "garbage",
        "no RAM",
        "QEMU's own memory",
    ],
)
def test_the_words_of_anything_else_are_not_read(data: bytes) -> None:
    assert place(data) is None


def test_a_word_whose_page_is_not_in_memory_is_left_out() -> None:
    with opened_memory(os.getpid(), "/proc/self") as process:
        for address in (0, 1, 0x7FFF_FFFF_F000, (1 << 64) - 2):
            with pytest.raises(ring_words.NotThere):
                ring_words._word(process, address)


def _shapes(exposed: snapshot.Exposed) -> VirtioShapes:
    core = Core(exposed.frozen.core)
    return virtqueues.write(core, None, Symbols(core, exposed.frozen), exposed.frozen.read, exposed.frozen.write)
