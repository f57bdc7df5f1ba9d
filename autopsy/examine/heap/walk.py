"""Walk QEMU's heap by DWARF, in a process of its own: drgn reads hostile debug information in C.

    python -m autopsy.examine.heap.walk < REQUEST

The request comes on stdin; each line on stdout is a whole heap_records.Heap, every one better than the one before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

import drgn
import msgspec

from autopsy.bundle.heap.loops import ThreadLocals
from autopsy.bundle.heap.records import BlockNode, Heap, HeapSnapshot, TrackedRequest
from autopsy.examine.core.elf import Elf, ElfError
from autopsy.examine.core.extent import CoreExtent
from autopsy.examine.core.reader import Core, CoreError
from autopsy.examine.heap import block, control, loops, objects, throttle
from autopsy.examine.heap import devices as heap_device
from autopsy.examine.heap.shape import Walk

MOST_MEMORY = 4 << 30
MOST_OUTPUT = 256 << 20
PR_SET_PDEATHSIG = 1
TIME_DIGITS = 20


class MappedImage(msgspec.Struct, frozen=True, kw_only=True):
    """An ELF file of the process; `bias` turns an address of the file into one of the process."""

    path: str
    bias: int


class WalkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to walk; a core is a path or an open descriptor.

    `second_from` is a pipe that tells when the second snapshot was frozen, once its core is whole; it ends without a
    word where there is none. `polled` and `rings_poll` are what Walk says of them.
    """

    core: str | int
    debug: str
    frozen_at_ns: int
    seconds: float
    images: tuple[MappedImage, ...] = ()
    second_core: str | int = ""
    second_from: int = -1
    polled: tuple[int, ...] | None = None
    rings_poll: bool = False


def main() -> None:
    """Answer one request."""
    with open(0, "rb", closefd=False) as asked:  # inside gdb, sys.stdin and sys.stdout are not files
        request = msgspec.json.decode(asked.read(), type=WalkRequest)
    _confine(request.seconds)
    began = time.monotonic()
    program, notes = _program(request)
    core = Core(_core(request.core))
    can_overlay = hasattr(program, "add_memory_segment")  # gdb cannot, and reads the binary by itself
    for image in request.images if can_overlay else ():
        _fill_from(program, core, image)
    first = _snapshot(program, core, request, request.frozen_at_ns, notes)
    _tell(Heap(first=first, symbols=request.debug, ms=_since(began)))
    if request.second_from < 0 or not can_overlay:
        return
    if (second_at := _second_at(request.second_from)) is None:
        return
    try:
        delta = Core(_core(request.second_core))
    except CoreError as error:
        sys.stderr.write(f"the second core: {error}\n")
        return
    for extent in delta.extents:
        _lay_over(program, extent)
    second = _snapshot(program, delta, request, second_at, [])
    first = msgspec.structs.replace(first, nodes=_compare(first.nodes, second.nodes))
    _tell(Heap(first=first, second=second, symbols=request.debug, ms=_since(began)))


def _second_at(pipe: int) -> int | None:
    """Wait for the second snapshot, and return when it was frozen."""
    frozen_at = os.read(pipe, TIME_DIGITS)  # so few bytes come at once, or none
    return int(frozen_at) if frozen_at else None


def _core(name: str | int) -> Path | int:
    return Path(name) if isinstance(name, str) else name


def _confine(seconds: float) -> None:
    """Give this process nothing but what it needs, and end it with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.disable(logging.CRITICAL)  # drgn warns of every DWARF operation that it does not know
    signal.alarm(int(seconds) + 2)
    cpu = int(seconds * (os.cpu_count() or 1)) + 1
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, MOST_MEMORY),
        (resource.RLIMIT_FSIZE, MOST_OUTPUT),
        (resource.RLIMIT_CPU, cpu),
    ):
        _, hard = resource.getrlimit(limit)
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (wanted, wanted))


def _program(request: WalkRequest) -> tuple[drgn.Program, list[str]]:
    program = drgn.Program()
    program.set_core_dump(request.core)
    if hasattr(program, "set_enabled_debug_info_finders"):  # since drgn 0.0.30; DEBUGINFOD_URLS is unset besides
        program.set_enabled_debug_info_finders([])
    try:
        program.load_debug_info([request.debug])
    except drgn.MissingDebugInfoError as error:
        return program, [f"debug information: {str(error)[:200]}"]
    return program, []


def _lay_over(program: drgn.Program, extent: CoreExtent) -> None:
    """Let the second snapshot's bytes take the place of the first's."""

    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:  # noqa: FBT001 - drgn's signature
        return extent.source[extent.offset + offset : extent.offset + offset + count]

    program.add_memory_segment(extent.start, extent.end - extent.start, read)


def _fill_from(program: drgn.Program, core: Core, image: MappedImage) -> None:
    """Let the file's bytes stand where the core has none: its constants are in no core, and names lie among them."""
    try:
        elf = Elf(Path(image.path))
    except ElfError:
        return
    for segment in elf.segments:
        position = image.bias + segment.address
        end = position + segment.stored
        for extent in (*core.extents_within(position, end), None):
            stop = min(end, extent.start) if extent else end
            if stop > position:
                _lay_file(program, elf, image.bias, position, stop - position)
            position = max(position, extent.end) if extent else end


def _lay_file(program: drgn.Program, elf: Elf, bias: int, start: int, size: int) -> None:
    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:  # noqa: FBT001 - drgn's signature
        return elf.read(address - bias, count).ljust(count, b"\0")

    program.add_memory_segment(start, size, read)


def _snapshot(program: drgn.Program, core: Core, request: WalkRequest, taken_ns: int, notes: list[str]) -> HeapSnapshot:
    polled = None if request.polled is None else frozenset(request.polled)
    walk = Walk(program, taken_ns, polled, request.rings_poll, notes)
    threads: tuple[ThreadLocals, ...] = ()
    with walk.reading("the threads' own variables"):
        threads = objects.thread_locals(walk, core)
    objects.name_contexts(walk)
    runners = _runners(threads)
    devices = heap_device.disk_devices(walk)
    snapshot = HeapSnapshot(
        taken_ns=taken_ns,
        run_state=walk.value("run state", control.run_state, ""),
        migration=walk.value("migration", control.migration, ""),
        bql=walk.value("BQL", control.bql, None),
        graph_lock=walk.value("graph lock", block.graph_lock, None),
        aio_waiters=walk.value("AIO_WAIT_WHILE", control.aio_waiters, None),
        drain_all_count=walk.value("drains", control.drain_all_count, None),
        dispatcher_busy=walk.value("QMP dispatcher", control.dispatcher_busy, None),
        threads=threads,
        backends=block.backends(walk),
        nodes=block.nodes(walk),
        throttle_groups=throttle.throttle_groups(walk),
        contexts=loops.contexts(walk, runners),
        jobs=control.jobs(walk),
        nbd_clients=block.nbd_clients(walk),
        virtqueues=heap_device.virtqueues(walk, devices),
        scsi_devices=heap_device.scsi_devices(walk, devices),
        lsi=heap_device.lsi(walk, devices),
        monitors=control.monitors(walk),
    )
    return msgspec.structs.replace(
        snapshot, locks=tuple(walk.locks.values()), notes=tuple(walk.notes), cut=tuple(walk.cut)
    )


def _compare(first: tuple[BlockNode, ...], second: tuple[BlockNode, ...]) -> tuple[BlockNode, ...]:
    """Say of each request whether the second snapshot still holds it, at the same place and of the same coroutine."""
    later = {_identity(request) for node in second for request in node.requests}
    return tuple(
        msgspec.structs.replace(
            node,
            requests=tuple(
                msgspec.structs.replace(request, since_first="stuck" if _identity(request) in later else "gone")
                for request in node.requests
            ),
        )
        for node in first
    )


def _identity(request: TrackedRequest) -> tuple[int, int, int, str, int]:
    return request.address, request.offset, request.bytes, request.type, request.coroutine


def _runners(threads: tuple[ThreadLocals, ...]) -> dict[int, int]:
    """Return which thread runs which AioContext: the first to say so, which in a core is the main thread."""
    runners: dict[int, int] = {}
    for thread in threads:
        runners.setdefault(thread.context, thread.tid)
    return runners


def _tell(heap: Heap) -> None:
    with open(1, "wb", closefd=False) as output:
        output.write(msgspec.json.encode(heap) + b"\n")


def _since(began: float) -> float:
    return round((time.monotonic() - began) * 1e3, 1)


if __name__ == "__main__":
    main()
