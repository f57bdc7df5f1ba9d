from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.devices import VirtQueue
from autopsy.bundle.heap.virtio import VirtioShapes
from autopsy.bundle.sections import Section, parse, render
from autopsy.examine import second_exposure
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.heap import run, virtqueues
from support import lab, snapshot
from tests.examine import test_hostile_core as by_hand

HEAP = 0x60_0000
DEVICE, CLASS, TYPE, NAME, PATH, ENTRY = (HEAP + 0x1000 * number for number in range(6))
ARRAY = HEAP + 0x1_0000
HANDLER = by_hand.CODE + 0x1000
ASKED = {  # of x-query-virtio-queue-status, by our names
    "size": "vring-num",
    "inuse": "inuse",
    "last_avail_idx": "last-avail-idx",
    "shadow_avail_idx": "shadow-avail-idx",
    "used_idx": "used-idx",
    "signalled_used": "signalled-used",
    "signalled_used_valid": "signalled-used-valid",
}


def shapes(exposed: snapshot.Exposed) -> VirtioShapes:
    """Find the devices alone, without gdb."""
    core = Core(exposed.frozen.core)
    second = Core.over(core, Core(exposed.frozen.second_core)) if exposed.frozen.second_core else None
    symbols = Symbols(core, exposed.frozen)
    virtqueues.write(core, second, symbols, exposed.frozen.read, exposed.frozen.write)
    found: VirtioShapes = exposed.record(layout.VIRTQUEUES, VirtioShapes)
    return found


@contextmanager
def guest_that_waits(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest has written to its virtio-blk disk of three queues and read its SCSI disk; now four of its writes
    wait for a throttle of one byte a second."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-object", "iothread,id=io0"),
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,iothread=io0,num-queues=3,id=vd0,drive=disk0"),
            *("-device", "virtio-scsi-pci,id=scsi0"),
            *("-drive", f"if=none,id=disk1,file={lab.disk(place / 'e.raw')},format=raw"),
            *("-device", "scsi-hd,id=sd0,drive=disk1,bus=scsi0.0", "-device", "virtio-rng-pci"),
            load="1,4,4096,w,rand,100000",
        ) as machine,
    ):
        lab.until("the guest has written", lambda: lab.writes_done(machine, "vd0") > 200, seconds=lab.GUEST_SECONDS)
        none = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        machine.qmp("block_set_io_throttle", device="disk0", bps_wr=1, **none)
        last = lab.writes_done(machine, "vd0")

        def still() -> bool:
            nonlocal last
            before, last = last, lab.writes_done(machine, "vd0")
            return before == last

        lab.until("its writes wait", still, seconds=lab.GUEST_SECONDS)
        yield machine


@pytest.mark.live
@pytest.mark.parametrize("build", lab.qemu_builds(), ids=lambda build: build.label)
def test_the_queues_of_disks_are_found_by_their_shape_alone(build: lab.Build) -> None:
    with guest_that_waits(lab.build(build.label)) as machine:
        with snapshot.exposed(machine, again=True) as exposed:
            told = shapes(exposed)
            second_exposure.examine_again(exposed.frozen)
            assert exposed.record(layout.VIRTQUEUES, VirtioShapes).first == told.first
            eventfds = {
                section.name
                for section in _sections(exposed)
                if section.name.startswith("fd/") and section.data.strip() == b"anon_inode:[eventfd]"
            }
        answers = _ask(machine) if build.label in {"7.2", "10.0.2"} else {}  # it is known to harm others
    assert told.notes == ()
    assert told.second == told.first
    devices = {device.device: device for device in told.first}
    assert {name: device.device_type for name, device in devices.items()} == {
        "vd0": "virtio-blk-device",
        "scsi0": "virtio-scsi-device",
        "/machine/peripheral-anon/device[0]": "virtio-rng-device",
    }
    disk, controller = devices["vd0"], devices["scsi0"]
    assert [queue.index for queue in disk.queues] == [0, 1, 2]
    assert sum(queue.inuse for queue in disk.queues) == 4
    assert sum(queue.last_avail_idx for queue in disk.queues) > 200
    assert all((queue.last_avail_idx - queue.used_idx) % 65536 == queue.inuse for queue in disk.queues)
    assert controller.queues[2].last_avail_idx > 0
    assert all(queue.inuse == 0 for queue in controller.queues)
    assert (disk.broken, disk.vhost_started, controller.broken, controller.vhost_started) == (False,) * 4
    for queue in (*disk.queues, *controller.queues):
        assert queue.host_notifier_enabled
        assert f"fd/{queue.host_notifier_fd}" in eventfds
    for (name, index), answer in answers.items():
        queue = devices[name].queues[index]
        assert {key: getattr(queue, key) for key in ASKED} == {key: answer[asked] for key, asked in ASKED.items()}


@pytest.mark.live
def test_the_shape_tells_exactly_what_the_debug_information_tells() -> None:
    if importlib.util.find_spec("drgn") is None:
        lab.missing("drgn is not installed")
    with guest_that_waits(lab.build("10.0.2-debug")) as machine, snapshot.exposed(machine) as exposed:
        told = shapes(exposed)
        walked = run.finish(run.start(exposed.frozen, Symbols(Core(exposed.frozen.core), exposed.frozen), 15)).first
    assert walked is not None
    of_disks = [device for device in told.first if device.device in {"vd0", "scsi0"}]
    assert _sorted(queue for device in of_disks for queue in device.queues) == _sorted(walked.virtqueues)


@pytest.mark.live
def test_a_device_that_was_unplugged_is_not_found_in_what_it_left_behind() -> None:
    with (
        lab.folder() as place,
        lab.guest(
            lab.build("7.2"),
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0", "-device", "virtio-rng-pci,id=rng0"),
        ) as machine,
    ):
        with snapshot.exposed(machine) as exposed:
            assert {device.device for device in shapes(exposed).first} == {"vd0", "rng0"}
        machine.qmp("device_del", id="rng0")
        lab.until("it is gone", lambda: "rng0" not in _peripherals(machine), seconds=lab.GUEST_SECONDS)
        with snapshot.exposed(machine) as exposed:
            assert {device.device for device in shapes(exposed).first} == {"vd0"}


def array(queues: int = 2, **changed: Any) -> bytes:
    """Return an array as virtio_init() makes it, its first queues in use; `changed` are members of the first."""
    first = {
        "num": 256,
        "flag": 1,
        "handler": HANDLER,
        "guest": (12, 12, 1),
        "host": (20, 20, 1),
        "vdev": DEVICE,
        "index": 0,
        **changed,
    }
    packed = []
    for number in range(virtqueues.QUEUES):
        used = number < queues
        one: dict[str, Any] = first if number == 0 else {**first, "vdev": DEVICE, "index": number}
        packed.append(
            virtqueues.QUEUE.pack(
                *(one["num"] if used else 0, 0, 0, 0, 0, 0, 0, 0),
                *((7, 0, 7, 0, 5, 0, 5, 1, one["flag"]) if used else (0,) * 9),
                *(one["index"], 2 if used else 0, 1 if used else 0xFFFF, one["handler"] if used else 0, one["vdev"]),
                *((*one["guest"], *one["host"], 1) if used else (0,) * 7),
            )
        )
    return b"".join(packed)


def core_with(
    queues: bytes, *, kind: bytes = b"virtio-blk-device", path: bytes = b"/machine/peripheral/vd0/virtio-backend"
) -> bytes:
    """Return a core that holds one virtio device, as QEMU lays it out."""
    words = [0] * 64
    words[0], words[6], words[28] = CLASS, PATH, ARRAY
    words[53], words[54], words[55] = int.from_bytes(b"\x02\0\1\1\1\0\1\1", "little"), 0x01_0100, ENTRY
    pages = {DEVICE: struct.pack("<64Q", *words), CLASS: struct.pack("<Q", TYPE), TYPE: struct.pack("<Q", NAME)}
    pages |= {NAME: kind, PATH: path, ENTRY: b""}
    memory = b"".join(pages.get(HEAP + at, b"").ljust(0x1000, b"\0") for at in range(0, 0x1_0000, 0x1000))
    return by_hand.whole(memory + queues)


def found_in(data: bytes, evidence: bytes = b"") -> VirtioShapes:
    core = Core.of(data)
    given_to = by_hand.frozen()
    return virtqueues.write(core, None, Symbols(core, given_to), lambda _path: evidence, lambda _file, _data: None)


def test_a_device_made_by_hand_is_found() -> None:
    told = found_in(core_with(array()))
    (device,) = told.first
    assert (device.address, device.device, device.device_type) == (DEVICE, "vd0", "virtio-blk-device")
    assert (device.broken, device.vhost_started) == (True, True)
    assert [(queue.index, queue.size, queue.inuse, queue.last_avail_idx) for queue in device.queues] == [
        (0, 256, 2, 7),
        (1, 256, 2, 7),
    ]
    assert (device.queues[0].guest_notifier_fd, device.queues[0].host_notifier_fd) == (12, 20)
    assert told.notes == ()


@pytest.mark.parametrize(
    ("queues", "more"),
    [
        (array(index=1), {}),
        (array(vdev=DEVICE + 8), {}),
        (array(flag=2), {}),
        (array(handler=HEAP), {}),
        (array(host=(20, 21, 1)), {}),
        (array(host=(21, 21, 1)), {}),
        (array(), {"kind": b"e1000"}),
        (array(), {"path": b"/nowhere"}),
        (array(), {"path": b""}),
        (array()[: virtqueues.QUEUE.size], {}),
        (array(virtqueues.QUEUES), {}),
    ],
    ids=[
        "a queue has another's number",
        "a queue belongs to another device",
        "a flag is 2",
        "a handler is data",
        "a notifier is a pipe",
        "a notifier is a file",
        "the device is a network card",
        "the device is nowhere in the tree",
        "the device is in no tree",
        "the array is cut off",
        "every queue is in use",
    ],
)
def test_what_does_not_fit_in_one_thing_is_left_out(queues: bytes, more: dict[str, bytes]) -> None:
    links = render([Section("fd/20", b"anon_inode:[eventfd]\n"), Section("fd/21", b"/etc/passwd\n")])
    assert found_in(core_with(array()), links).first
    assert found_in(core_with(queues, **more), links).first == ()


def test_a_device_that_does_not_point_back_at_its_queues_is_none() -> None:
    data = core_with(array())
    assert found_in(data.replace(struct.pack("<Q", ARRAY), struct.pack("<Q", ARRAY + 16))).first == ()


def test_a_heap_full_of_ends_of_arrays_ends_the_search_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtqueues, "MOST_CANDIDATES", 100)
    asked = []
    word = Core.word
    monkeypatch.setattr(Core, "word", lambda self, address: asked.append(address) or word(self, address))
    told = found_in(core_with(virtqueues.LAST * 20_000))
    assert told.first == ()
    assert len(told.notes) == 1
    assert len(asked) < 200


def test_queues_that_nobody_has_numbered_are_none() -> None:
    assert found_in(by_hand.whole(bytes(1 << 20))).first == ()
    assert found_in(core_with(b"\xff" * (1 << 18))).first == ()


def _sections(exposed: snapshot.Exposed) -> tuple[Section, ...]:
    return tuple(parse(exposed.frozen.read(layout.evidence(layout.WITNESS, layout.FDS))))


def _ask(machine: lab.Machine) -> dict[tuple[str, int], dict[str, Any]]:
    backend = "/machine/peripheral/{}/virtio-backend"
    return {
        (name, index): machine.qmp("x-query-virtio-queue-status", path=backend.format(name), queue=index)
        for name in ("vd0", "scsi0")
        for index in range(3)
    }


def _peripherals(machine: lab.Machine) -> set[str]:
    return {each["name"] for each in machine.qmp("qom-list", path="/machine/peripheral")}


def _sorted(queues: Any) -> list[VirtQueue]:
    return sorted(queues, key=lambda queue: (queue.device, queue.index))
