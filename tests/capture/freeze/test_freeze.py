from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.records import FreezeRecord
from autopsy.capture.freeze import step as freeze
from autopsy.capture.freeze import tracer
from autopsy.capture.step import Collected, Failed
from autopsy.drill.machine import Machine
from autopsy.examine.core.reader import Core
from autopsy.linux.child import in_child
from support import lab, looking
from support.freezing import HELD, frames, gdb, mappings, quiet_vm, take, untouched

pytestmark = pytest.mark.live
both_ways = pytest.mark.usefixtures("both_ways")

SECRET = b"a guest's secret"  # 16 bytes


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Return a quiet VM that the tests of this file share."""
    with quiet_vm() as running:
        yield running


@both_ways
def test_gdb_shows_every_thread_of_the_core_with_the_frames_of_a_live_gdb(machine: Machine, tmp_path: Path) -> None:
    binary = Path(f"/proc/{machine.pid}/exe").resolve()
    bt = ("-ex", "set print frame-arguments none", "-ex", "thread apply all bt")
    for attempt in range(5):  # even an idle VM has a thread that wakes now and then
        place = tmp_path / str(attempt)
        place.mkdir()
        taken = take(machine.pid, place)
        frozen, live = frames(gdb(*bt, binary, taken.path)), frames(gdb(*bt, "-p", str(machine.pid)))
        tids = [each.tid for each in taken.record.threads if each.how in HELD]
        if frozen == {tid: live.get(tid) for tid in tids}:  # one that has ended since gives it another try
            break
    else:
        pytest.fail("no core had the frames of a live gdb")
    kernels = {each.tid for each in taken.record.threads if "kernel" in each.why}
    assert {int(name) for name in os.listdir(f"/proc/{machine.pid}/task")} <= {
        *tids,
        *kernels,
    }  # a worker may have ended since
    assert all(len(stack) >= 2 for stack in frozen.values())
    listed = gdb("-ex", "info threads", binary, taken.path)
    assert [int(lwp) for lwp in re.findall(r"\(LWP (\d+)\)", listed[listed.index("Id ") :])] == tids
    assert untouched(machine.pid)


@both_ways
def test_eu_readelf_and_drgn_open_the_core(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    threads = len(taken.core.threads)
    if shutil.which("eu-readelf") is not None:
        printed = subprocess.run(["eu-readelf", "-n", taken.path], capture_output=True, check=True).stdout.decode()
        assert printed.count("PRSTATUS") == threads
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(taken.path))
    assert {thread.tid for thread in program.threads()} == {thread.tid for thread in taken.core.threads}


def test_the_record_says_how_long_the_vm_stood_and_who_was_there(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    assert isinstance(taken.outcome, Collected)
    (stop,) = taken.record.stops
    assert taken.outcome.stop_ns == stop.end_ns - stop.start_ns > 0
    assert stop.start_ns < taken.record.frozen_at_ns < stop.end_ns
    assert taken.record.threads[0].tid == machine.pid
    assert {each.comm for each in taken.record.threads} >= {"IO io0", "IO io3"}
    assert all(each.stack_bytes for each in taken.record.threads if each.how == "stopped")
    assert taken.record.core_bytes == taken.path.stat().st_size
    assert list(tmp_path.glob("evidence/*/*")) == [tmp_path / "evidence" / "freeze" / "freeze.json"]


@both_ways
def test_the_frozen_bytes_are_those_of_the_process(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    heap = next(each for each in mappings(machine.pid) if each.path == "[heap]")
    same = different = 0
    with open(f"/proc/{machine.pid}/mem", "rb", buffering=0) as memory:
        for extent in taken.core.extents_within(heap.start, heap.end):
            for address in range(extent.start, extent.end, 4096):
                memory.seek(address)
                if memory.read(4096) == taken.core.read(address, 4096):
                    same += 1
                else:
                    different += 1
    assert same > 100
    assert different <= same // 50


@both_ways
def test_the_aio_ring_is_in_the_core(machine: Machine, tmp_path: Path) -> None:
    machine.qemu_io(lab.of_device("vd0"), "write 0 4k")
    ring = next(each for each in mappings(machine.pid) if each.path.startswith("/[aio]"))
    taken = take(machine.pid, tmp_path)
    assert taken.core.int32(ring.start + 16) & 0xFFFFFFFF == 0xA10A10A1  # struct aio_ring's magic


@both_ways
def test_relro_data_and_headers_of_the_libraries_are_in_the_core_and_their_code_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    taken = take(machine.pid, tmp_path)
    libc = [each for each in mappings(machine.pid) if "libc.so" in each.path]
    assert taken.core.read(libc[0].start, 4) == b"\x7fELF"
    assert any(taken.core.holds(each.start) for each in libc if each.permissions == "r--p" and each.offset)
    assert not any(taken.core.holds(each.start) for each in libc if each.permissions == "r-xp")
    assert {each.path for each in taken.core.files} >= {libc[0].path}


@both_ways
def test_the_second_exposure_over_the_first_is_a_whole_core(machine: Machine, tmp_path: Path) -> None:
    first = take(machine.pid, tmp_path)
    second = take(machine.pid, tmp_path, second=True)
    assert second.path == tmp_path / "evidence" / "second-exposure" / "core"
    assert second.path.stat().st_blocks < first.path.stat().st_blocks // 4
    assert {each.tid for each in second.core.threads} == {each.tid for each in first.core.threads}
    both = Core.over(first.core, second.core)
    assert sum(each.end - each.start for each in both.extents) >= first.record.copied_bytes * 0.99


def test_a_second_exposure_without_a_first_stands_for_itself(machine: Machine, tmp_path: Path) -> None:
    alone = take(machine.pid, tmp_path, second=True)
    assert sum(each.end - each.start for each in alone.core.extents) >= alone.record.copied_bytes


@both_ways
def test_under_tcg_every_thread_is_frozen_and_generated_code_is_left_out(tmp_path: Path) -> None:
    with lab.qemu("7.2") as running:
        taken = take(running.pid, tmp_path)
        assert taken.how <= HELD
        assert any("CPU 0/TCG" in each.comm for each in taken.record.threads)
        assert any(each.why == "generated code" for each in taken.record.left_out)
        assert untouched(running.pid)


def write_firmware(path: Path) -> None:
    """Fill 64 KiB at 0x10000 with the secret, which stands in this code only under a mask."""
    code = bytes.fromhex("fab800108ec031fffcbe3000b910002eac3455aae2f985ff75eff4ebfd")
    rom = bytearray(code.ljust(0x30, b"\0") + bytes(byte ^ 0x55 for byte in SECRET)).ljust(1 << 16, b"\0")
    rom[0xFFF0:0xFFF3] = bytes.fromhex("e90d00")  # the reset vector: jump to 0
    path.write_bytes(rom)


def guest_wrote(pid: int, memory: int) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as stream:
        for each in mappings(pid):
            if each.size == memory << 20:
                stream.seek(each.start + 0x10000)
                return stream.read(16) == SECRET
    return False


@pytest.mark.parametrize("backend", ["anon", "memfd", "memfd-private", "file-private", "file-shared", "undumped"])
@both_ways
def test_guest_ram_is_never_in_the_core(backend: str, tmp_path: Path) -> None:
    with lab.folder() as folder:
        write_firmware(folder / "rom")
        objects = {
            "anon": "memory-backend-ram,id=m,size=64M",
            "memfd": "memory-backend-memfd,id=m,size=64M",
            "memfd-private": "memory-backend-memfd,id=m,size=64M,share=off",
            "file-private": f"memory-backend-file,id=m,size=64M,mem-path={folder}/ram,share=off",
            "file-shared": f"memory-backend-file,id=m,size=64M,mem-path={folder}/ram,share=on",
            "undumped": "memory-backend-ram,id=m,size=64M,dump=off",
        }
        with lab.qemu(
            "7.2",
            *("-object", objects[backend], "-machine", "memory-backend=m"),
            *("-bios", str(folder / "rom")),
            accelerate=lab.KVM if lab.kvm_works() else lab.TCG,
            boots=True,
        ) as running:
            lab.until("the guest has written", lambda: guest_wrote(running.pid, 64))
            taken = take(running.pid, tmp_path)
            again = take(running.pid, tmp_path, second=True)
            assert untouched(running.pid)
    assert SECRET not in taken.path.read_bytes()
    assert SECRET not in again.path.read_bytes()
    assert any(each.size == 64 << 20 and "guest RAM" in each.why for each in taken.record.left_out)


def test_without_permission_it_says_how_to_get_it(machine: Machine, tmp_path: Path) -> None:
    lab.need_root()

    def as_nobody() -> bytes:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with looking.scene(machine.pid, tmp_path, "freeze") as at:
            return repr(freeze.expose(at)).encode()

    (tmp_path / "evidence" / "freeze").mkdir(parents=True)
    for each in (tmp_path, *tmp_path.parents):
        if each.owner() == "root" and "pytest" in str(each):
            each.chmod(0o755)
    said = in_child(as_nobody, 10).decode()
    assert said.startswith("Failed(")
    assert "not permitted: run as root or with CAP_SYS_PTRACE" in said


def test_a_32_bit_process_and_another_architecture_are_told_and_not_tried(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looking.scene(machine.pid, tmp_path, "freeze") as at:
        monkeypatch.setattr(freeze.platform, "machine", lambda: "aarch64")
        outcome = freeze.expose(at)
        assert isinstance(outcome, Failed)
        assert outcome.why.startswith("freeze needs x86-64; aarch64 is not supported yet; --live-gdb ")
    assert freeze._is_64_bit(Path("/proc/self/auxv").read_bytes()) is (sys.maxsize > 1 << 32)
    assert not freeze._is_64_bit(
        bytes.fromhex("10000000fffb8b1f0600000000100000040000002000000005000000090000000000000000000000")
    )


def test_a_disk_that_is_full_costs_the_core_and_not_the_record(machine: Machine, tmp_path: Path) -> None:
    lab.need_root()
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "small", mount], check=True)
    try:
        with looking.scene(machine.pid, mount, "freeze") as at:
            outcome = freeze.expose(at)
            assert outcome == Failed("the core could not be written: No space left on device")
            record = msgspec.json.decode((at.folder / layout.FREEZE_RECORD).read_bytes(), type=FreezeRecord)
        assert any(each.how in {"walked", "stopped"} for each in record.threads)
        assert not (mount / layout.CORE).exists()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_with_little_time_left_the_core_comes_before_the_second_copy(machine: Machine, tmp_path: Path) -> None:
    with looking.scene(machine.pid, tmp_path, layout.FREEZE, seconds=0.3) as at:
        assert isinstance(freeze.expose(at), Collected)
        record = looking.decoded(at, layout.FREEZE_RECORD, FreezeRecord)
    assert any("second time" in note for note in record.notes)
    assert Core(tmp_path / layout.CORE).threads


def test_a_host_that_cannot_fork_a_tracer_costs_the_stop_and_not_the_core(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(tracer.os, "fork", no_memory)
    taken = take(machine.pid, tmp_path)
    monkeypatch.undo()
    assert taken.record.stops == ()
    assert taken.thread(machine.pid).how == "from-proc"
    assert any("no tracer" in note for note in taken.record.notes)
