"""Every way to be stuck, on real QEMUs, examined: what is known to be in flight is what is found."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.heap.records import Heap, HeapSnapshot
from autopsy.bundle.records import Coroutine, EventFd, Frame, LockGraph, MainLoop, Rings, ThreadStack, WorkerThread
from autopsy.drill.machine import Machine
from autopsy.examine import run
from support import lab, snapshot

pytestmark = pytest.mark.live

DEBUG = "10.0.2-debug"
INTERCEPT = "throttle_group_co_io_limits_intercept"
BEHIND_A_NODE = 128
BEHIND_A_DISK = 12
TO_NBD = 20
NBD_SLOTS = 16  # MAX_NBD_REQUESTS
IN_THREADS = 5
IN_RING = 4
A_MOMENT = 0.3
PPOLL = "271"


@pytest.fixture(autouse=True)
def _with_drgn() -> None:
    if importlib.util.find_spec("drgn") is None:
        lab.missing("drgn is not installed")


@dataclass(frozen=True, slots=True)
class Told:
    """What an examination wrote of one VM."""

    coroutines: tuple[Coroutine, ...]
    stacks: tuple[ThreadStack, ...]
    loop: MainLoop
    locks: LockGraph
    heap: HeapSnapshot | None
    workers: tuple[WorkerThread, ...]
    rings: Rings | None
    listing: str

    def parked(self, *functions: str) -> list[Coroutine]:
        """Return the parked coroutines that have one of these functions on their stack."""
        wanted = set(functions)
        return [each for each in self.coroutines if each.state == "parked" and wanted & set(called(each.frames))]

    @property
    def requests(self) -> list[Coroutine]:
        """Return the parked coroutines that are no monitor's."""
        own = {"monitor_qmp_dispatcher_co"}
        return [each for each in self.coroutines if each.state == "parked" and not own & set(called(each.frames))]


def called(frames: Iterable[Frame]) -> list[str]:
    return [frame.function for frame in frames]


def examined(machine: Machine, *, again: bool = False) -> Told:
    with snapshot.exposed(machine, again=again) as found:
        run.examine_core(found.frozen)
        results = found.place / "evidence" / layout.GDB_THREADS
        return Told(
            coroutines=found.record(layout.COROUTINES, tuple[Coroutine, ...]),
            stacks=found.record(layout.THREADS, tuple[ThreadStack, ...]),
            loop=found.record(layout.MAIN_LOOP, MainLoop),
            locks=found.record(layout.LOCKS, LockGraph),
            heap=found.record(layout.HEAP, Heap).first,
            workers=found.record(layout.WORKERS, tuple[WorkerThread, ...]),
            rings=found.record(layout.RINGS, Rings) if (results / layout.RINGS).exists() else None,
            listing=(results / layout.COROUTINES_TEXT).read_text(),
        )


def many(machine: Machine, target: str, count: int) -> None:
    for number in range(count):
        machine.qemu_io(target, f"aio_write {number * 64}k 4k")


def test_whatever_is_in_flight_is_found_where_it_waits(build: lab.Build) -> None:
    with (
        lab.folder() as place,
        lab.file_system() as mounted,
        lab.nbd(lab.disk(place / "n.raw")) as server,
    ):
        pooled, ringed = (lab.disk(mounted.mount / name) for name in ("pooled.raw", "ringed.raw"))
        with lab.qemu(
            build,
            *("-object", "throttle-group,id=tg0,x-bps-total=1"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 't.raw')},node-name=file0"),
            *("-blockdev", "driver=throttle,node-name=slow0,throttle-group=tg0,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=slow0"),
            *("-drive", f"if=none,id=leg0,file={lab.disk(place / 'l.raw')},format=raw,throttling.bps-total=1"),
            *("-device", "virtio-blk-pci,drive=leg0"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", "virtio-blk-pci,id=vd1,drive=nbd0"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'b.raw')},node-name=file1"),
            *("-blockdev", "driver=blkdebug,node-name=bug0,image=file1"),
            *("-device", "virtio-blk-pci,id=vd2,drive=bug0"),
            *("-drive", f"if=none,id=pooled,file={pooled},format=raw,cache=none,aio=threads"),
            *("-device", "virtio-blk-pci,drive=pooled"),
            *("-drive", f"if=none,id=ringed,file={ringed},format=raw,cache=none,aio=io_uring"),
            *("-device", "virtio-blk-pci,drive=ringed"),
        ) as machine:
            many(machine, lab.of_device("vd0"), BEHIND_A_NODE)
            many(machine, "leg0", BEHIND_A_DISK)
            machine.qemu_io(lab.of_device("vd2"), "break pwritev held")
            many(machine, lab.of_device("vd2"), 1)
            with lab.stopped(server.process), lab.frozen(mounted):
                many(machine, lab.of_device("vd1"), TO_NBD)
                many(machine, "pooled", IN_THREADS)
                many(machine, "ringed", IN_RING)
                lab.until("a worker is in D", lambda: in_kernel(machine.pid, "worker") > 0)
                lab.until("so is one of io_uring's", lambda: in_kernel(machine.pid, "iou-wrk") > 0)
                told = examined(machine, again=True)
                alive(told, build)
                with suppress(TimeoutError):
                    machine.qmp("stop", within=A_MOMENT)
                    pytest.fail("`stop` came back")
                draining(examined(machine), build)


def in_kernel(pid: int, comm: str) -> int:
    """Return how many threads whose name begins so are in D."""
    stats = (each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat"))
    return sum(f"({comm}" in each and each.rpartition(")")[2].split()[0] == "D" for each in stats)


def alive(told: Told, build: lab.Build) -> None:
    """Hold what was found of the VM while its main loop lives against what was put in flight."""
    assert (told.loop.state, told.loop.command) == ("idle", "")
    throttled, reading, turned_away, in_threads, in_ring = (
        told.parked(INTERCEPT),
        told.parked("nbd_receive_reply"),
        told.parked("qemu_co_mutex_lock", "qemu_co_mutex_lock_slowpath"),
        told.parked("thread_pool_submit_co"),
        told.parked("luring_co_submit"),
    )
    assert Counter("bdrv_co_pwritev_part" in called(each.frames) for each in throttled) == {
        True: BEHIND_A_NODE,  # a filter node's requests have entered the block layer
        False: BEHIND_A_DISK,
    }
    assert len(reading) == 1
    assert "qio_channel_yield" in called(reading[0].frames)
    assert len(turned_away) == NBD_SLOTS - 1
    assert len(in_threads) == IN_THREADS
    assert len(in_ring) == IN_RING
    named = {each.address for each in (*throttled, *reading, *turned_away, *in_threads, *in_ring)}
    others = [each for each in told.requests if each.address not in named]
    queued = [each for each in others if "qemu_co_queue_wait_impl" in called(each.frames)]
    assert len(queued) == TO_NBD - NBD_SLOTS
    (held,) = [each for each in others if each not in queued]  # by blkdebug, whose functions are static
    assert {each.since_first for each in told.requests} == {"stuck"}
    (channel,) = told.locks.comutexes  # one reads the replies for all, and holds their lock meanwhile
    assert channel.holder == reading[0].address
    assert set(channel.waiters) == {each.address for each in turned_away}
    assert channel.locked == NBD_SLOTS
    assert told.locks.knots == ()
    assert f"{NBD_SLOTS - 1} of them wait for CoMutex {channel.address:#x}, which {channel.holder:#x}" in told.listing

    busy = [each for each in told.workers if each.state == "D" and each.doing == "in a system call"]
    # QEMU counts on a worker that was idle a moment ago, so that requests may outnumber those that were started.
    assert 0 < len(busy) <= IN_THREADS
    assert {each.call for each in busy} <= {"pwritev", "pwrite64"}
    in_kernel_for_us = [each for each in told.workers if each.doing == "in the kernel"]
    assert any(each.comm.startswith("iou-wrk") and each.state == "D" for each in in_kernel_for_us)

    if build.label != DEBUG:
        assert told.heap is None
        assert not any(frame.line for frame in held.frames if "qemu" in frame.module)
        return
    assert {"suspend_request", "blkdebug_co_debug_event", "blkdebug_debug_event"} & set(called(held.frames))
    assert line_of(throttled[0], INTERCEPT).endswith("block/throttle-groups.c")
    assert line_of(reading[0], "nbd_receive_reply").endswith("nbd/client.c")
    assert told.heap is not None
    nodes = {each.node_name: each for each in told.heap.nodes}
    for name, expected in (("slow0", BEHIND_A_NODE), ("nbd0", TO_NBD), ("bug0", 1)):
        requests = nodes[name].requests
        assert len(requests) == expected
        assert {each.coroutine for each in requests} <= {each.address for each in told.requests}
        assert {(each.bytes, each.type, each.since_first) for each in requests} == {(4096, "write", "stuck")}
    backends = {each.name or each.device: each for each in told.heap.backends}
    assert (backends["vd0"].in_flight, backends["leg0"].in_flight) == (BEHIND_A_NODE, BEHIND_A_DISK)
    assert (backends["pooled"].in_flight, backends["ringed"].in_flight) == (IN_THREADS, IN_RING)
    (client,) = told.heap.nbd_clients
    assert (client.in_flight, len(client.waiting_for_slot)) == (NBD_SLOTS, TO_NBD - NBD_SLOTS)
    assert client.receive_lock is not None
    assert (client.receive_lock.holder, client.receive_lock.locked) == (channel.holder, channel.locked)
    assert {each.queued + each.active for context in told.heap.contexts if (each := context.thread_pool)} == {
        IN_THREADS
    }


def line_of(coroutine: Coroutine, function: str) -> str:
    """Return the source file of a function on a stack."""
    frame = next(each for each in coroutine.frames if each.function == function)
    assert frame.line > 0
    return frame.file


def draining(told: Told, build: lab.Build) -> None:
    """Hold what was found once `stop` drains what never ends against what `stop` does."""
    assert (told.loop.state, told.loop.under) == ("nested poll", "bdrv_drain_all_begin")
    assert told.loop.command == "qmp_stop"
    assert len(told.parked(INTERCEPT)) < BEHIND_A_NODE + BEHIND_A_DISK  # a drain lets throttled requests go
    assert len(told.parked("nbd_receive_reply")) == 1
    if build.label == DEBUG:
        assert told.heap is not None
        assert told.heap.drain_all_count == 1
        assert told.heap.aio_waiters
        (main,) = [each for each in told.stacks if each.tid == told.loop.tid]
        assert any(frame.file.endswith("block/io.c") for frame in main.frames)


def test_native_aio_on_a_frozen_file_system_takes_the_main_loop_into_the_kernel(build: lab.Build) -> None:
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "native.raw")
        with lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,file={image},format=raw,cache=none,aio=native"),
            *("-device", "virtio-blk-pci,drive=disk0"),
        ) as machine:
            machine.qemu_io("disk0", "read 0 4k")  # makes the ring
            with lab.frozen(mounted):
                with suppress(TimeoutError):
                    machine.qemu_io("disk0", "aio_write 0 4k", within=A_MOMENT)
                lab.until("the main loop is in D", lambda: lab.any_thread_in(machine.pid, "D"))
                told = examined(machine)
    assert (told.loop.state, told.loop.under) == ("blocked in a system call", "io_submit")
    (main,) = [each for each in told.stacks if each.tid == told.loop.tid]
    stack = called(main.frames)
    assert "laio_co_submit" in stack
    # It is in a coroutine, whose stack ends: what it did before is in the context that it left.
    assert stack.index("laio_co_submit") < stack.index("main_loop_wait")
    assert told.loop.command == "hmp_qemu_io"
    assert main.cut_short == ""
    (running,) = [each for each in told.coroutines if each.state == "running"]
    assert running.caller
    assert [(each.coroutine, each.tid) for each in told.locks.entered] == [(running.address, told.loop.tid)]
    assert told.rings is not None
    assert all(each.valid and each.head == each.tail for each in told.rings.aio)
    if build.label == DEBUG:
        assert told.heap is not None
        assert any(frame.file.endswith("block/linux-aio.c") for frame in main.frames)
        (engine,) = [each for context in told.heap.contexts if (each := context.linux_aio)]
        assert engine.ring in {each.address for each in told.rings.aio}


def test_an_eventfd_that_nobody_reads_is_told_with_its_count_at_both_looks(stock: lab.Build) -> None:
    forgotten = os.eventfd(3)
    try:
        with lab.qemu(stock, "-object", "iothread,id=io0") as machine:
            give(machine, forgotten)
            lab.until("both event loops sleep", lambda: polling(machine.pid) >= 2)
            with snapshot.exposed(machine, again=True) as found:
                run.examine_core(found.frozen)
                told = found.record(layout.EVENTFDS, tuple[EventFd, ...])
    finally:
        os.close(forgotten)
    (unheard,) = [each for each in told if each.count == 3]
    assert (unheard.polled, unheard.count_again, unheard.polled_again) == (False, 3, False)
    assert any(each.polled for each in told)  # an event loop's own notifier


def polling(pid: int) -> int:
    """Return how many threads sleep in ppoll()."""
    calls = (each.read_text().split()[0] for each in Path(f"/proc/{pid}/task").glob("*/syscall"))
    return sum(call == PPOLL for call in calls)


def give(machine: Machine, descriptor: int) -> None:
    """Hand QEMU a descriptor to keep."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answers:
        connection.connect(str(machine.control))
        answers.readline()
        connection.sendall(b'{"execute": "qmp_capabilities"}')
        answers.readline()
        socket.send_fds(connection, [b'{"execute": "getfd", "arguments": {"fdname": "kept"}}'], [descriptor])
        assert b"return" in answers.readline()
