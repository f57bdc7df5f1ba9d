from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import Rings, WorkerThread
from autopsy.examine import run
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.threads import aio_rings, aio_workers
from autopsy.examine.view import View
from support import lab, snapshot

PLACE = 0x7F0000000000


def ring(*, head: int, tail: int, entries: int = 128, magic: int = aio_rings.MAGIC) -> bytes:
    return struct.pack("<8I", 7, entries, head, tail, magic, 1, 0, 32).ljust(4096, b"\0")


def test_a_ring_is_found_by_its_magic_without_a_map() -> None:
    core = Core.of(snapshot.core_of(b"", (PLACE, ring(head=3, tail=5))))
    (found,) = aio_rings.find_aio_rings(core, b"")
    assert (found.address, found.head, found.tail, found.entries, found.valid) == (PLACE, 3, 5, 128, True)


def test_a_ring_that_contradicts_itself_is_told_only_where_the_map_has_one() -> None:
    core = Core.of(snapshot.core_of(b"", (PLACE, ring(head=500, tail=5))))
    assert list(aio_rings.find_aio_rings(core, b"")) == []
    line = f"{PLACE:x}-{PLACE + 4096:x} rw-s 00000000 00:0d 1 /[aio] (deleted)\n".encode()
    (found,) = aio_rings.find_aio_rings(core, line)
    assert not found.valid


@given(st.binary(max_size=64), st.binary(max_size=200))
def test_any_memory_and_any_map_give_rings_or_none(memory: bytes, maps: bytes) -> None:
    for found in aio_rings.find_aio_rings(Core.of(snapshot.core_of(b"", (PLACE, memory))), maps):
        assert found.valid


@pytest.mark.live
def test_a_frozen_file_system_keeps_native_aio_and_workers_in_the_kernel(build: lab.Build) -> None:
    with lab.file_system() as mounted:
        native, pooled = (lab.disk(mounted.mount / name) for name in ("native.raw", "pooled.raw"))
        with lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,file={native},format=raw,cache=none,aio=native"),
            *("-device", "virtio-blk-pci,drive=disk0"),
            *("-drive", f"if=none,id=disk1,file={pooled},format=raw,cache=none,aio=threads"),
            *("-device", "virtio-blk-pci,drive=disk1"),
        ) as machine:
            machine.qemu_io("disk0", "read 0 4k")  # makes the ring
            with lab.frozen(mounted):
                for number in range(3):
                    machine.qemu_io("disk1", f"aio_write {number * 4}k 4k")
                lab.until("a worker is in D", lambda: "D" in states_of(machine.pid))
                with snapshot.exposed(machine) as exposed:
                    run.examine_core(exposed.frozen)
                    found = exposed.record(layout.RINGS, Rings)
                    view = opened(exposed.frozen)
                    aio_workers.examine_aio_workers(view)
                    pool = exposed.record(layout.WORKERS, tuple[WorkerThread, ...])
    assert all(each.valid and each.head == each.tail for each in found.aio)
    assert found.aio
    busy = [each for each in pool if each.state == "D"]
    # QEMU counts on a worker that was idle a moment ago, so that requests may outnumber those that were started.
    assert 0 < len(busy) <= 3
    assert {each.call for each in busy} <= {"pwritev", "pwrite64"}
    assert {each.doing for each in busy} == {"in a system call"}


def states_of(pid: int) -> list[str]:
    """Return the state of each thread; autopsy.drill.process tells only which there are."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return [each.read_text().rpartition(")")[2].split()[0] for each in stats]


def opened(frozen: Frozen) -> View:
    core = Core(frozen.core)
    return View(frozen=frozen, core=core, second=None, symbols=Symbols(core, frozen), threads=(), ends_at=0)
