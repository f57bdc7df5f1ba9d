from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.heap.records import Heap, HeapSnapshot
from autopsy.bundle.records import Coroutine, LockGraph, MainLoop, ThreadStack
from autopsy.examine import run, second_exposure
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.heap import run as heap
from autopsy.linux import environment
from support import lab, snapshot

pytestmark = pytest.mark.live
DEBUG = "10.0.2-debug"
PPOLL = "271"


@pytest.fixture(autouse=True)
def _with_drgn() -> None:
    if importlib.util.find_spec("drgn") is None:
        lab.missing("drgn is not installed")


def walked(exposed: snapshot.Exposed) -> HeapSnapshot:
    """Walk the heap alone, without gdb, and return the first snapshot."""
    symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
    found = heap.finish(heap.start(exposed.frozen, symbols, 15))
    assert found.why == ""
    assert found.first is not None
    return found.first


def one(records: Any, **wanted: object) -> Any:
    """Return the one record that has these values."""
    found = [each for each in records if all(getattr(each, name) == value for name, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def syscall_of(pid: int) -> str:
    """Return the number of the call that a process's main thread sleeps in, as /proc has it."""
    return Path(f"/proc/{pid}/task/{pid}/syscall").read_text().split(maxsplit=1)[0]


def test_every_throttled_request_is_a_tracked_request_of_a_queued_coroutine() -> None:
    with (
        lab.folder() as place,
        lab.qemu(
            DEBUG,
            *("-object", "iothread,id=io0", "-object", "throttle-group,id=tg0,x-bps-total=1"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=file0"),
            *("-blockdev", "driver=throttle,node-name=slow0,throttle-group=tg0,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=slow0,iothread=io0"),
            *("-drive", f"if=none,id=leg0,file={lab.disk(place / 'e.raw')},format=raw,bps=1,iops=7"),
            *("-device", "lsi53c895a,id=lsi0", "-device", "scsi-hd,drive=leg0,bus=lsi0.0,id=sd0"),
        ) as machine,
    ):
        for number in range(128):  # at the start, each disk has read a sector of its own: its bucket is full
            machine.qemu_io(lab.of_device("vd0"), f"aio_write {number * 4}k 4k")
        for number in range(9):
            machine.qemu_io("leg0", f"aio_read {number * 4}k 4k")
        # What it polls is seen of a main loop that rests: the last answer's writer may still be awake.
        lab.until("its main loop polls", lambda: syscall_of(machine.pid) == PPOLL)
        with snapshot.exposed(machine, again=True) as exposed:
            run.examine_core(exposed.frozen)
            told = exposed.record(layout.HEAP, Heap)
            parked = exposed.record(layout.COROUTINES, tuple[Coroutine, ...])
    assert told.why == ""
    first, second = told.first, told.second
    assert first is not None
    assert second is not None
    assert first.notes == ()

    slow = one(first.nodes, node_name="slow0")
    assert len(slow.requests) == 128
    assert {each.offset for each in slow.requests} == {number * 4096 for number in range(128)}
    assert {(each.bytes, each.type, each.since_first) for each in slow.requests} == {(4096, "write", "stuck")}
    assert [edge.node_name for edge in slow.children] == ["file0"]
    coroutines = {each.coroutine for each in slow.requests}
    assert coroutines <= {each.address for each in parked if each.state == "parked"}
    assert one(first.backends, device="vd0").in_flight == 128

    group = one(first.throttle_groups, name="tg0")
    assert group.lock.owner == 0
    assert group.address < group.lock.address < group.address + group.size
    assert group.any_timer_armed == (False, True)
    assert one(group.buckets, name="bps-total").avg == 1
    (member,) = group.members
    assert (member.owner, member.pending_requests) == ("slow0", (0, 128))
    assert set(member.queued[1]) == coroutines
    timer = member.timers[1]
    assert timer.clock == "realtime"
    assert timer.callback == "write_timer_cb"
    assert timer.due_in_ns > 0
    assert one(second.throttle_groups, name="tg0").members[0].timers[1].expires_ns == timer.expires_ns

    legacy = one(first.throttle_groups, name="leg0")
    assert legacy.members[0].pending_requests == (9, 0)
    assert one(legacy.buckets, name="iops-total").avg == 7
    assert one(first.backends, name="leg0").throttle_group == "leg0"
    assert one(first.backends, name="leg0").device == "sd0"
    assert one(first.scsi_devices, device="sd0").controller == "lsi0"
    assert one(first.lsi, device="lsi0").waiting == "nothing"
    assert not first.lsi[0].reentrancy_level  # 7.2.0 has none yet

    assert {"lock of throttle group tg0", "requests_lock of SCSI device sd0", "rq_lock of vd0"} <= {
        each.name for each in first.locks
    }

    contexts = {each.name: each for each in first.contexts}
    assert {"main", "iohandler", "io0", "mon_iothread"} <= contexts.keys()
    assert contexts["main"].tid == machine.pid != contexts["io0"].tid != 0
    assert all(handler.polled for handler in contexts["main"].handlers)
    assert {each.index for each in first.virtqueues} >= {0}
    assert first.run_state == "running"
    assert first.taken_ns < second.taken_ns


def test_the_second_exposure_tells_which_requests_are_still_there() -> None:
    with (
        lab.folder() as place,
        lab.qemu(
            DEBUG,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,drive=disk0"),
        ) as machine,
        snapshot.exposed(machine, again=True) as exposed,
    ):
        second_exposure.examine_again(exposed.frozen)
        found = exposed.record(layout.HEAP, Heap)
        assert sorted(each.name for each in exposed.frozen.scratch.iterdir()) == []
    assert found.first.taken_ns < found.second.taken_ns
    assert [each.address for each in found.first.nodes] == [each.address for each in found.second.nodes]


def test_a_silent_nbd_server_leaves_a_connected_client_with_requests_in_flight() -> None:
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw")) as server,
        lab.qemu(
            DEBUG,
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", "virtio-blk-pci,drive=nbd0,id=vd0"),
        ) as machine,
        lab.stopped(server.process),
    ):
        for number in range(20):
            machine.qemu_io(lab.of_device("vd0"), f"aio_write {number * 4}k 4k")
        with snapshot.exposed(machine) as exposed:
            found = walked(exposed)
    (client,) = found.nbd_clients
    assert (client.node_name, client.state, client.in_flight) == ("nbd0", "connected", 16)
    assert len(client.requests) == 16
    assert len(client.waiting_for_slot) == 4
    node = one(found.nodes, node_name="nbd0")
    assert {each.coroutine for each in client.requests} < {each.coroutine for each in node.requests}
    assert client.receive_lock is not None
    assert client.receive_lock.holder in {each.coroutine for each in client.requests}


def test_a_core_whose_binary_is_gone_is_walked_with_a_debug_file(tmp_path: Path) -> None:
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        lab.missing("objcopy is not installed")
    build = lab.build(DEBUG)
    binary, debug = tmp_path / "qemu-system-x86_64", tmp_path / "qemu.debug"
    shutil.copy(build.binary, binary)
    with (
        lab.folder() as place,
        lab.qemu(
            replace(build, binary=binary),
            *("-object", "throttle-group,id=tg0,x-bps-total=1"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=file0"),
            *("-blockdev", "driver=throttle,node-name=slow0,throttle-group=tg0,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=slow0"),
        ) as machine,
    ):
        machine.qemu_io(lab.of_device("vd0"), "aio_write 0 4k")
        machine.qemu_io(lab.of_device("vd0"), "aio_write 4k 4k")
        with snapshot.exposed(machine, alive=False) as exposed:
            binary.unlink()
            symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
            without = heap.finish(heap.start(exposed.frozen, symbols, 15))
            subprocess.run([objcopy, "--only-keep-debug", build.binary, debug], check=True)
            frozen = replace(exposed.frozen, debug_files=(debug,))
            found = heap.finish(heap.start(frozen, Symbols(Core(frozen.core), frozen), 15))
    assert without.first is None
    assert found.why == ""
    assert found.first is not None
    assert {each.driver for each in found.first.nodes} == {"file", "throttle"}
    assert one(found.first.throttle_groups, name="tg0").members[0].pending_requests == (0, 2)


def test_a_job_is_told_with_its_progress_and_its_coroutine() -> None:
    with (
        lab.folder() as place,
        lab.qemu(
            DEBUG,
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=file0"),
            *("-blockdev", "driver=raw,node-name=raw0,file=file0"),
            *("-device", "virtio-blk-pci,drive=raw0,id=vd0"),
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'e.raw')},node-name=target0"),
        ) as machine,
    ):
        machine.qmp(
            "blockdev-backup",
            **{"job-id": "backup0", "device": "raw0", "target": "target0", "sync": "full", "speed": 65536},
        )
        with snapshot.exposed(machine) as exposed:
            found = walked(exposed)
    (job,) = found.jobs
    assert (job.id, job.type, job.status) == ("backup0", "backup", "running")
    assert job.progress_total == 64 << 20
    assert job.progress_current < job.progress_total
    assert job.coroutine
    assert {each.driver for each in found.nodes} >= {"raw", "file", "copy-before-write"}


@pytest.mark.timeout(300)  # a guest boots under TCG and writes until it deadlocks
def test_the_throttle_deadlock_lies_in_the_group_named_like_its_disk() -> None:
    with lab.throttle_deadlock(DEBUG) as machine, snapshot.exposed(machine) as exposed:
        (stuck, *_) = lab.self_deadlocked(machine.pid)
        run.examine_core(exposed.frozen)
        locks = exposed.record(layout.LOCKS, LockGraph)
        loop = exposed.record(layout.MAIN_LOOP, MainLoop)
        stacks = exposed.record(layout.THREADS, tuple[ThreadStack, ...])
        found = exposed.record(layout.HEAP, Heap).first
    assert (stuck,) in locks.cycles
    assert stuck in {each.tid for each in locks.entered}  # it waits inside a coroutine
    held = one(locks.mutexes, owner=stuck)
    assert stuck in held.waiters
    assert held.owner_comm.startswith("IO iothread")
    assert (held.place, held.kind, held.is_bql) == ("heap", "normal", False)
    assert (loop.state, loop.command) == ("idle", "")
    assert any(frame.file.endswith("block/throttle-groups.c") for frame in one(stacks, tid=stuck).frames)
    (group,) = found.throttle_groups
    assert group.lock.address == held.address
    assert group.lock.owner == stuck
    assert group.name == "/machine/peripheral/vd0/virtio-backend"
    assert one(found.locks, address=held.address).name == f"lock of throttle group {group.name}"
    (member,) = group.members
    assert member.owner == "vd0"
    assert member.pending_requests[1] >= len(member.queued[1]) > 0
    context = one(found.contexts, tid=stuck)
    assert context.name == held.owner_comm.removeprefix("IO ")
    assert sum(queue.inuse for queue in found.virtqueues) >= member.pending_requests[1]


def test_a_stripped_qemu_has_no_heap_and_says_why(stock: lab.Build) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine) as exposed:
        symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
        found = heap.finish(heap.start(exposed.frozen, symbols, 15))
    assert found.first is None
    assert "DWARF" in found.why


def test_without_drgn_gdb_walks_the_same_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw")) as server,
        lab.qemu(
            DEBUG,
            *("-object", "iothread,id=io0", "-object", "throttle-group,id=tg0,x-bps-total=1"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-blockdev", "driver=throttle,node-name=slow0,throttle-group=tg0,file=nbd0"),
            *("-device", "virtio-blk-pci,drive=slow0,id=vd0,iothread=io0"),
        ) as machine,
        snapshot.exposed(machine) as exposed,
    ):
        whole = walked(exposed)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "drgn" else find(name))
        symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
        found = heap.finish(heap.start(exposed.frozen, symbols, 15))
    assert "drgn is not installed" in found.why
    assert found.first is not None
    assert [note for note in found.first.notes if "threads" not in note] == []
    for part in set(HeapSnapshot.__struct_fields__) - {"threads", "contexts", "notes"}:
        assert getattr(found.first, part) == getattr(whole, part), part
    assert [each.handlers for each in found.first.contexts] == [each.handlers for each in whole.contexts]


def test_without_drgn_and_without_gdb_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "drgn" else find(name))
    with lab.qemu(DEBUG) as machine, snapshot.exposed(machine) as exposed:
        monkeypatch.setattr(environment, "PATH", str(tmp_path))
        symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
        found = heap.finish(heap.start(exposed.frozen, symbols, 15))
    assert found.first is None
    assert "could not be started" in found.why


def test_a_walk_that_takes_too_long_is_ended_and_says_so() -> None:
    with lab.qemu(DEBUG) as machine, snapshot.exposed(machine) as exposed:
        symbols = Symbols(Core(exposed.frozen.core), exposed.frozen)
        found = heap.finish(heap.start(exposed.frozen, symbols, 0.001))
    assert found.first is None
    assert "longer than it may" in found.why


def test_a_torn_heap_is_told_and_ends_nothing() -> None:
    with (
        lab.folder() as place,
        lab.qemu(
            DEBUG,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw,bps=1"),
            *("-device", "virtio-blk-pci,drive=disk0"),
        ) as machine,
        snapshot.exposed(machine) as exposed,
    ):
        whole = walked(exposed)
        frozen = exposed.frozen
        file = frozen.core.read_bytes()
        core = Core(frozen.core)
        symbols = Symbols(core, frozen)

        @settings(max_examples=8, deadline=None)
        @given(st.data())
        def tear(data: st.DataObject) -> None:
            damaged = bytearray(file)
            for address in victims(whole):
                if not core.holds(address, 4096) or not data.draw(st.booleans()):
                    continue
                page = data.draw(st.sampled_from((b"\0", b"\xff", b"\x41"))) * 512
                place_of = file.find(core.read(address, 512))
                damaged[place_of : place_of + 512] = page
            torn = frozen.scratch / "torn"
            torn.write_bytes(damaged)
            other = Frozen(core=torn, read=frozen.read, write=lambda _f, _d: None, scratch=frozen.scratch)
            found = heap.finish(heap.start(other, symbols, 15))
            assert found.why == ""
            assert msgspec.json.decode(msgspec.json.encode(found), type=Heap) == found

        tear()


def victims(whole: HeapSnapshot) -> list[int]:
    """Return the addresses of what the walk reads."""
    return [
        *(each.address for each in (*whole.nodes, *whole.backends, *whole.contexts, *whole.throttle_groups)),
        *(each.address for each in whole.monitors),
        *(member.address for group in whole.throttle_groups for member in group.members),
    ]


def test_nothing_of_the_callers_environment_reaches_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    callers = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "GDBHISTFILE", "DEBUGINFOD_URLS")
    for name in callers:
        monkeypatch.setenv(name, str(tmp_path))
    assert str(tmp_path) not in environment.ours().values()
    assert set(callers) & set(environment.ours()) == {"PATH"}
