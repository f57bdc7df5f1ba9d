"""Walk the devices that disks belong to: virtqueues, SCSI requests, the LSI controller's registers."""

from __future__ import annotations

from collections.abc import Iterator

import drgn

from autopsy.bundle.heap.devices import Lsi, LsiRequest, ScsiDevice, ScsiRequest, VirtQueue
from autopsy.examine.heap.block import block_backends, device_of
from autopsy.examine.heap.shape import Walk, cast, flag, lock, member, object_type, pointer

MOST_QUEUES = 1024  # VIRTIO_QUEUE_MAX
DEEPEST_BUS = 16
WAITING = ("nothing", "reselect", "dma scripts", "dma in progress", "scripts")  # LSI_NOWAIT …; the last since v9.0
REGISTERS = (
    *("istat0", "istat1", "dstat", "sist0", "sist1", "dien", "sien0", "sien1", "dcmd", "dsp", "dsps", "dbc", "dnad"),
    *(
        "scntl0",
        "scntl1",
        "scntl3",
        "sstat0",
        "sstat1",
        "scid",
        "sdid",
        "ssid",
        "ctest2",
        "mbox0",
        "mbox1",
        "command_complete",
    ),
    *("current_lun", "select_tag", "status", "msg_action", "carry"),
)
MOST_STATICS = 256  # the compiler numbers the static variables of functions through a file
REENTRANCY = ("reentrancy_level", *(f"reentrancy_level.{number}" for number in range(MOST_STATICS)))


def disk_devices(walk: Walk) -> dict[int, tuple[str, ...]]:
    """Return the QOM types of every device on the way from a disk to its controller, by address."""
    types_by_address: dict[int, tuple[str, ...]] = {}
    for backend in block_backends(walk):
        with walk.reading(f"device of the back end at {pointer(backend):#x}"):
            device = cast(walk.program, "DeviceState", pointer(backend.dev))
            for _ in range(DEEPEST_BUS):
                if not pointer(device):
                    break
                if pointer(device) not in types_by_address:
                    types_by_address[pointer(device)] = object_type(cast(walk.program, "Object", pointer(device)))
                bus = device.parent_bus
                device = bus.parent if pointer(bus) else cast(walk.program, "DeviceState", 0)
    return types_by_address


def virtqueues(walk: Walk, devices: dict[int, tuple[str, ...]]) -> tuple[VirtQueue, ...]:
    """Return the queues of every virtio disk and virtio SCSI controller."""
    queues: list[VirtQueue] = []
    for address, types in devices.items():
        if "virtio-device" in types:
            with walk.reading(f"virtqueues of the device at {address:#x}"):
                queues.extend(_queues(walk, cast(walk.program, "VirtIODevice", address), types[0]))
                _know_locks(walk, address, types[0])
    return tuple(queues)


def scsi_devices(walk: Walk, devices: dict[int, tuple[str, ...]]) -> tuple[ScsiDevice, ...]:
    """Return every SCSI disk with its requests."""
    disks: list[ScsiDevice] = []
    for address, types in devices.items():
        if "scsi-device" in types:
            with walk.reading(f"SCSI device at {address:#x}"):
                disks.append(_scsi(walk, cast(walk.program, "SCSIDevice", address), types[0]))
    return tuple(disks)


def lsi(walk: Walk, devices: dict[int, tuple[str, ...]]) -> tuple[Lsi, ...]:
    """Return every LSI 53C8xx controller."""
    controllers: list[Lsi] = []
    for address, types in devices.items():
        if types[0].startswith("lsi53c8"):
            with walk.reading(f"LSI controller at {address:#x}"):
                controllers.append(_lsi(walk, cast(walk.program, "LSIState", address)))
    return tuple(controllers)


def _queues(walk: Walk, device: drgn.Object, kind: str) -> Iterator[VirtQueue]:
    name = device_of(walk, cast(walk.program, "DeviceState", pointer(device)))
    first = device.vq
    for index in range(MOST_QUEUES if pointer(first) else 0):
        queue = first[index]
        if not int(queue.vring.num):  # queues are set up from the first on
            return
        yield VirtQueue(
            device=name,
            device_type=kind,
            index=index,
            size=int(queue.vring.num),
            inuse=int(queue.inuse),
            last_avail_idx=int(queue.last_avail_idx),
            shadow_avail_idx=int(queue.shadow_avail_idx),
            used_idx=int(queue.used_idx),
            signalled_used=int(queue.signalled_used),
            signalled_used_valid=bool(queue.signalled_used_valid),
            notification=bool(queue.notification),
            host_notifier_fd=int(queue.host_notifier.rfd),
            guest_notifier_fd=int(queue.guest_notifier.rfd),
            host_notifier_enabled=flag(queue, "host_notifier_enabled"),
        )


def _know_locks(walk: Walk, address: int, kind: str) -> None:
    name = device_of(walk, cast(walk.program, "DeviceState", address))
    match kind:
        case "virtio-blk-device":
            walk.knows(name, cast(walk.program, "VirtIOBlock", address), "rq_lock")
        case "virtio-scsi-device":
            walk.knows(name, cast(walk.program, "VirtIOSCSI", address), "event_lock", "ctrl_lock", "tmf_bh_lock")
        case _:
            pass


def _scsi(walk: Walk, device: drgn.Object, kind: str) -> ScsiDevice:
    address = pointer(device)
    requests: list[ScsiRequest] = []
    for request in walk.chain(f"requests of the SCSI device at {address:#x}", device.requests, "next"):
        with walk.reading(f"SCSI request at {pointer(request):#x}"):
            requests.append(
                ScsiRequest(
                    address=pointer(request),
                    tag=int(request.tag),
                    command=int(request.cmd.buf[0]),
                    enqueued=bool(request.enqueued),
                    canceled=bool(request.io_canceled),
                    retry=bool(request.retry),
                    in_block_layer=bool(pointer(request.aiocb)),
                )
            )
    walk.knows(f"SCSI device {device_of(walk, cast(walk.program, 'DeviceState', address))}", device, "requests_lock")
    bus = device.qdev.parent_bus
    requests_lock = member(device, "requests_lock")
    return ScsiDevice(
        address=address,
        size=drgn.sizeof(device[0]),
        device=device_of(walk, cast(walk.program, "DeviceState", address)),
        device_type=kind,
        controller=device_of(walk, bus.parent) if pointer(bus) else "",
        requests=tuple(requests),
        requests_lock=None if requests_lock is None else lock(requests_lock),
    )


def _lsi(walk: Walk, state: drgn.Object) -> Lsi:
    waiting = int(state.waiting)
    registers = {name: int(value) for name in REGISTERS if (value := member(state, name)) is not None}
    return Lsi(
        device=device_of(walk, cast(walk.program, "DeviceState", pointer(state))),
        waiting=WAITING[waiting] if 0 <= waiting < len(WAITING) else str(waiting),
        current=_lsi_request(state.current) if pointer(state.current) else None,
        queue=tuple(_lsi_request(request) for request in walk.chain("the LSI controller's queue", state.queue, "next")),
        registers=registers,
        # Since "hw/scsi/lsi53c895a: add timer to scripts processing" (in v9.0 and v7.2.11).
        scripts_timer=walk.timer(member(state, "scripts_timer")),
        reentrancy_level=_reentrancy_level(walk),
    )


def _reentrancy_level(walk: Walk) -> int | None:
    """Return lsi_execute_script's static counter: the compiler numbers its symbol, and no debugger's index has it."""
    for name in REENTRANCY:
        for symbol in walk.program.symbols(name):
            if symbol.kind == drgn.SymbolKind.OBJECT:
                level: int = drgn.Object(
                    walk.program, walk.program.int_type("int", 4, is_signed=True), address=symbol.address
                ).value_()
                return level
    return None


def _lsi_request(request: drgn.Object) -> LsiRequest:
    return LsiRequest(
        address=pointer(request),
        tag=int(request.tag),
        pending=int(request.pending),
        dma_bytes=int(request.dma_len),
        out=bool(request.out),
    )
