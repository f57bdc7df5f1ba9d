"""Find virtio devices and their queues in frozen memory, without symbols.

virtio_init() makes one array of VIRTIO_QUEUE_MAX queues for each device, and writes into every one of them its number
and a pointer to the device, used or not. That is the shape: 1,024 numbers in order, 1,024 equal pointers, a device
there that points back at the array, a QOM type whose name says virtio or vhost, and a path in QEMU's tree of objects.
What fails one of these is left out, and a note says so.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from autopsy.bundle import layout, sections
from autopsy.bundle.heap.devices import VirtQueue
from autopsy.bundle.heap.virtio import RingPlace, VirtioDevice, VirtioShapes
from autopsy.dataclass import dataclass
from autopsy.examine.core.reader import WORD, Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.heap import vrings
from autopsy.examine.view import View

QUEUES = 1024  # VIRTIO_QUEUE_MAX
MOST_SCANNED = 4 << 30  # a core holds no guest RAM; one that claims more is no core of ours
MOST_CANDIDATES = 1024  # places that look like the end of an array; a VM has one for each virtio device
MOST_NOTES = 20
LONGEST_NAME = 1024

# struct VirtQueue since QEMU's "virtio: unify dataplane and non-dataplane ->handle_output()" (in v7.0).
QUEUE = struct.Struct("<3I4x4QQHBxHBxHBxHBBH2xIH6xQQiiB3xiiB3xB7x16x")
NODE = 16  # nobody has written there for a queue that is not in use: its page may be in no core
INDEX_AT, VDEV_AT = 72, 96
# The last queue of an array, which no device uses: its number, nothing in use, VIRTIO_NO_VECTOR, no handler.
LAST = struct.pack("<H2xIH6xQ", QUEUES - 1, 0, 0xFFFF, 0)

DEVICE = struct.Struct("<64Q")  # VirtIODevice up to where its last member of interest may lie
CANONICAL_PATH, ID = 6, 5  # DeviceState's, in words: the same from QEMU 5.2 to 11
BACKEND = "/virtio-backend"
KINDS = ("virtio-", "vhost-")
# From device_id on: vm_running, broken, use_disabled_flag, disabled, use_started, started, start_on_kick,
# disable_legacy_check, vhost_started; then a pointer to the VMChangeStateEntry.
FLAGS = struct.Struct("<H9B5xQ")
DEVICE_IDS = {"virtio-blk-device": 2, "virtio-scsi-device": 8}
EVENTFD = b"anon_inode:[eventfd]"


class Members(NamedTuple):
    """A struct VirtQueue, in its order; a notifier's three are an EventNotifier."""

    size: int
    size_by_default: int
    align: int
    descriptors: int
    available: int
    used: int
    caches: int
    used_elements: int
    last_avail_idx: int
    last_avail_wrap: int
    shadow_avail_idx: int
    shadow_avail_wrap: int
    used_idx: int
    used_wrap: int
    signalled_used: int
    signalled_used_valid: int
    notification: int
    number: int
    inuse: int
    vector: int
    handler: int
    device: int
    guest_fd: int
    guest_write_fd: int
    guest_there: int
    host_fd: int
    host_write_fd: int
    host_there: int
    host_enabled: int

    @property
    def flags(self) -> tuple[int, ...]:
        """Return every member that is a truth."""
        wraps = self.last_avail_wrap, self.shadow_avail_wrap, self.used_wrap
        return (
            *wraps,
            self.signalled_used_valid,
            self.notification,
            self.guest_there,
            self.host_there,
            self.host_enabled,
        )


class NotOne(Exception):
    """What looked like a virtio device is none, or none whose layout is known."""


@dataclass(frozen=True, slots=True)
class QueueArray:
    """Where a device and its array of queues lie."""

    device: int
    array: int


def examine_virtqueues(view: View) -> VirtioShapes:
    """Write virtqueues.json, and return what it says."""
    return write(view.core, view.second, view.symbols, view.frozen.read, view.frozen.write)


def write(
    core: Core,
    second: Core | None,
    symbols: Symbols,
    read: Callable[[str], bytes],
    store: Callable[[str, bytes], None],
) -> VirtioShapes:
    """Find the devices in the first snapshot, read them in both, and write virtqueues.json."""
    began = time.monotonic()
    notes: list[str] = []
    eventfds = _eventfds(read)
    devices: list[tuple[QueueArray, VirtioDevice]] = []
    for place in _places(core, notes):
        device = _attempt(core, symbols, place, eventfds, notes)
        if device is not None:
            devices.append((place, device))
    again = None
    if second is not None:
        # A device does not move: what is plugged in between the snapshots is in neither's evidence.
        later = (_attempt(second, symbols, place, {}, notes) for place, _ in devices)
        again = tuple(device for device in later if device is not None)
    shapes = VirtioShapes(
        first=tuple(device for _, device in devices),
        second=again,
        notes=tuple(notes[:MOST_NOTES]),
        ms=(time.monotonic() - began) * 1e3,
    )
    store(layout.VIRTQUEUES, msgspec.json.format(msgspec.json.encode(shapes), indent=1) + b"\n")
    return shapes


def _places(core: Core, notes: list[str]) -> Iterator[QueueArray]:
    """Yield each place where a device and the end of an array point at each other."""
    candidates, left = MOST_CANDIDATES, MOST_SCANNED
    seen = set()
    for extent in core.one_after_another():
        left -= extent.end - extent.start
        if left < 0:
            notes.append("the core is too large to be searched for virtio devices")
            return
        for address in extent.find(LAST):
            if not candidates:
                notes.append(f"more than {MOST_CANDIDATES} places look like the end of an array of queues")
                return
            candidates -= 1
            array = address - INDEX_AT - (QUEUES - 1) * QUEUE.size
            try:
                device = core.word(address - INDEX_AT + VDEV_AT)
                points_back = device % 8 == 0 and array in DEVICE.unpack(core.read(device, DEVICE.size))
            except CoreError:
                continue
            if points_back and address % 8 == 0 and device not in seen:
                seen.add(device)
                yield QueueArray(device, array)


def _attempt(
    core: Core, symbols: Symbols, place: QueueArray, eventfds: dict[int, bool], notes: list[str]
) -> VirtioDevice | None:
    try:
        return _device(core, symbols, place, eventfds)
    except (NotOne, CoreError) as error:
        notes.append(f"what looks like a virtio device at {place.device:#x}: {error}")
        return None


def _device(core: Core, symbols: Symbols, place: QueueArray, eventfds: dict[int, bool]) -> VirtioDevice:
    """Return the device. Raises NotOne, CoreError."""
    words = DEVICE.unpack(core.read(place.device, DEVICE.size))
    kind = _type(symbols, words[0])
    path = symbols.string(words[CANONICAL_PATH], LONGEST_NAME) if words[CANONICAL_PATH] else ""
    if not kind.startswith(KINDS) or not path.startswith("/machine/"):
        raise NotOne(f"its type is {kind!r:.80} and its path {path!r:.80}")
    if words.count(place.array) != 1:
        raise NotOne("several of its members point at its queues")
    array = core.read(place.array, QUEUES * QUEUE.size - NODE) + bytes(NODE)
    if memoryview(array).cast("H")[INDEX_AT // 2 :: QUEUE.size // 2].tolist() != list(range(QUEUES)):
        raise NotOne("its queues are not numbered from 0 on")
    if set(memoryview(array).cast("Q")[VDEV_AT // 8 :: QUEUE.size // 8].tolist()) != {place.device}:
        raise NotOne("its queues are not all its own")
    name = symbols.string(words[ID], LONGEST_NAME) if words[ID] else ""
    name = name or path.removesuffix(BACKEND).removeprefix("/machine/peripheral/")
    flags = _flags(core, words, words.index(place.array), kind)
    return VirtioDevice(
        address=place.device,
        device=name,
        device_type=kind,
        broken=None if flags is None else flags[0],
        vhost_started=None if flags is None else flags[1],
        queues=tuple(_queues(symbols, array, name, kind, eventfds)),
        rings=tuple(_rings(core, array)),
    )


def _queues(symbols: Symbols, array: bytes, device: str, kind: str, eventfds: dict[int, bool]) -> Iterator[VirtQueue]:
    """Yield the queues that are set up. Raises NotOne."""
    for values in QUEUE.iter_unpack(array):
        queue = Members(*values)
        if not queue.size:  # queues are set up from the first on
            return
        if max(queue.flags) > 1:
            raise NotOne(f"a flag of queue {queue.number} is neither true nor false")
        if queue.handler and not symbols.is_code(queue.handler):
            raise NotOne(f"the handler of queue {queue.number} is no code")
        for fd, write_fd, there in (
            (queue.guest_fd, queue.guest_write_fd, queue.guest_there),
            (queue.host_fd, queue.host_write_fd, queue.host_there),
        ):
            if there and (fd != write_fd or not eventfds.get(fd, True)):
                raise NotOne(f"a notifier of queue {queue.number} is no eventfd")
        yield VirtQueue(
            device=device,
            device_type=kind,
            index=queue.number,
            size=queue.size,
            inuse=queue.inuse,
            last_avail_idx=queue.last_avail_idx,
            shadow_avail_idx=queue.shadow_avail_idx,
            used_idx=queue.used_idx,
            signalled_used=queue.signalled_used,
            signalled_used_valid=bool(queue.signalled_used_valid),
            notification=bool(queue.notification),
            host_notifier_fd=queue.host_fd,
            guest_notifier_fd=queue.guest_fd,
            host_notifier_enabled=bool(queue.host_enabled),
        )


def _rings(core: Core, array: bytes) -> Iterator[RingPlace]:
    for values in QUEUE.iter_unpack(array):
        queue = Members(*values)
        if not queue.size:
            return
        addresses = queue.descriptors, queue.available, queue.used
        if ring := vrings.place(core, queue.number, queue.size, queue.caches, addresses):
            yield ring


def _type(symbols: Symbols, cls: int) -> str:
    """Return the name of a QOM object's type, from its class: ObjectClass and TypeImpl begin with what leads there."""
    name = _word(symbols, _word(symbols, cls))
    return symbols.string(name, LONGEST_NAME) if name else ""


def _word(symbols: Symbols, address: int) -> int:
    data = symbols.read(address, WORD.size)
    return int(WORD.unpack(data)[0]) if len(data) == WORD.size else 0


def _flags(core: Core, words: tuple[int, ...], array_at: int, kind: str) -> tuple[bool, bool] | None:
    """Return `broken` and `vhost_started`, where exactly one place behind the array's pointer can be theirs."""
    wanted = DEVICE_IDS.get(kind)
    if wanted is None:
        return None
    data = DEVICE.pack(*words)
    flags = []
    for at in range((array_at + 1) * 8, DEVICE.size - FLAGS.size + 1, 8):
        number, running, broken, *others, vhost, entry = FLAGS.unpack_from(data, at)
        if number == wanted and max(running, broken, *others, vhost) <= 1 and entry and core.holds(entry, WORD.size):
            flags.append((bool(broken), bool(vhost)))
    return flags[0] if len(flags) == 1 else None


def _eventfds(read: Callable[[str], bytes]) -> dict[int, bool]:
    """Return of each descriptor that was listed whether it is an eventfd."""
    is_eventfd: dict[int, bool] = {}
    for step in (layout.PROC_FDS, layout.WITNESS):  # the look before the freeze is nearer to the core
        for section in sections.parse(read(layout.evidence(step, layout.FDS))):
            kind, _, number = section.name.partition("/")
            if kind == "fd" and number.isascii() and number.isdigit() and len(number) < 10:
                is_eventfd[int(number)] = section.data.strip() == EVENTFD
    return is_eventfd
