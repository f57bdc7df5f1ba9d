"""`autopsy ps` sees every QEMU, and touches none."""

from __future__ import annotations

import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from autopsy.bundle.proc_stat import ProcStat
from autopsy.cli import terminal
from autopsy.drill.machine import Machine
from autopsy.drill.process import start
from autopsy.linux.batch import Unanswered
from autopsy.target import coroutine_count
from autopsy.target import vital_signs as signs
from autopsy.target.identity import Binary
from autopsy.target.platforms.platform import Roots
from autopsy.target.ps import ListedVm, census
from autopsy.target.qemu_process import QemuProcess
from autopsy.target.vital_signs import Glance
from support import lab
from support.builds import version

NOWHERE = Roots(run=Path("/nonexistent"))
TOLD = QemuProcess(
    Binary(path="/q", deleted=False, replaced=False, qemu_version="7", build_id=""), ("q",), (), named=True
)
TRACER_OF_NOBODY = "TracerPid:\t0"
SIGNALS = re.compile(r"S(ig(?!Q)|hd)")


def of(vm: Machine, roots: Roots = NOWHERE) -> ListedVm:
    (found,) = [each for each in census(roots) if each.pid == vm.pid]
    return found


@pytest.mark.live
def test_a_healthy_vm_is_listed_without_a_sign_of_trouble(build: lab.Build) -> None:
    disk = ("-blockdev", "driver=null-co,node-name=n0", "-device", "virtio-blk-pci,id=vd0,drive=n0")
    with lab.qemu(build, *disk, name="calm") as vm:
        found = of(vm)
        assert (found.target, found.manager, found.name) == (f"pid:{vm.pid}", "process", "calm")
        assert found.qemu_version.startswith(version(build))
        assert (found.binary_replaced, found.state, found.threads_in_d, found.disks) == (False, "S", 0, 1)
        assert found.threads == len(list(Path(f"/proc/{vm.pid}/task").iterdir()))
        assert found.cpu_percent < 50
        assert str(vm.monitor) in [monitor.address for monitor in found.monitors]
        assert found.signs == ()
        assert msgspec.json.encode(found)


@pytest.mark.live
def test_requests_that_are_parked_are_counted(build: lab.Build) -> None:
    with lab.folder() as place:
        limited = f"if=none,id=disk0,format=raw,file={lab.disk(place / 'disk.raw')},throttling.iops-total=1"
        with lab.qemu(build, "-drive", limited, "-device", "virtio-blk-pci,drive=disk0") as vm:
            assert of(vm).parked_requests == 0
            for number in range(40):
                vm.qemu_io("disk0", f"aio_write {number * 4}k 4k")
            assert 30 <= (of(vm).parked_requests or 0) <= 40  # one is let go each second
            free = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
            vm.qmp("block_set_io_throttle", device="disk0", **free)
            lab.until("they are done, and their coroutines pooled", lambda: of(vm).parked_requests == 0)


def test_what_is_no_qemu_has_no_count() -> None:
    with pytest.raises(coroutine_count.Unclear):
        coroutine_count.count(os.getpid())


@pytest.mark.parametrize(
    ("code", "by_pointer"),
    [
        ("90 90 e8 01 02 03 04", False),
        ("90 90 90 90 90 ff d0", True),  # call *%rax
        ("90 90 90 90 41 ff 10", True),  # call *(%r8)
        ("90 90 90 90 ff 53 08", True),  # call *8(%rbx)
        ("90 ff 93 00 01 00 00", True),  # call *256(%rbx)
        ("90 90 e8 01 02 ff d0", None),
        ("90 90 90 90 90 ff e0", None),  # a jump
        ("90 90 90 90 90 90 90", None),
        ("ff d0", None),
    ],
)
def test_the_call_before_a_return_address_is_told(code: str, *, by_pointer: bool | None) -> None:
    assert coroutine_count.calls_by_pointer(bytes.fromhex(code)) is by_pointer


@pytest.mark.live
def test_the_census_holds_no_monitor_and_stops_no_thread() -> None:
    with lab.qemu("7.2") as vm:
        before = Path(f"/proc/{vm.pid}/status").read_text()
        of(vm)
        after = Path(f"/proc/{vm.pid}/status").read_text()
        assert TRACER_OF_NOBODY in before
        assert TRACER_OF_NOBODY in after
        # SigQ counts the signals that are queued for this user, by whomever: it is not this process's own.
        assert [line for line in before.splitlines() if SIGNALS.match(line)] == [
            line for line in after.splitlines() if SIGNALS.match(line)
        ]
        assert vm.qmp("query-status")["status"] == "running"


@pytest.mark.live
def test_a_managers_vm_is_listed_under_its_own_name(short: Path) -> None:
    place = short / "qemu-server"
    place.mkdir()
    with lab.qemu("7.2", "-pidfile", f"{place}/102.pid", name="listed") as vm:
        found = of(vm, Roots(run=short))
        assert (found.target, found.manager, found.name) == ("pve:102", "proxmox", "102")
        (place / "103.pid").write_text(f"{os.getpid()}\n")
        assert [each.pid for each in census(Roots(run=short))].count(os.getpid()) == 0


@pytest.mark.live
def test_a_stopped_vm_and_a_frozen_one_show_it() -> None:
    with lab.qemu("7.2") as vm:
        with lab.stopped(vm):
            assert of(vm).state == "T"
            assert "stopped by a signal" in of(vm).signs
        if os.geteuid() == 0:
            with lab.frozen_cgroup(vm.pid):
                assert any("freez" in sign or "frozen" in sign or "refrigerat" in sign for sign in of(vm).signs)
        assert of(vm).signs == ()


@pytest.mark.live
def test_threads_that_hang_are_told_with_their_wchan_and_after_a_kill_that_it_cannot_die() -> None:
    with lab.file_system() as storage:
        image = lab.disk(storage.mount / "d.raw")
        disk = ("-drive", f"if=none,id=d0,file={image},format=raw,aio=threads", "-device", "virtio-blk-pci,drive=d0")
        with lab.qemu("7.2", *disk) as vm:
            with lab.frozen(storage):
                for offset in range(4):
                    vm.qemu_io("d0", f"aio_write {offset}M 4k")
                lab.until("its writes hang", lambda: of(vm).threads_in_d == 4)
                signs = of(vm).signs
                assert [sign.partition(" (")[0] for sign in signs] == ["4 threads in D"]
                vm.process.send(signal.SIGKILL)
                lab.until("it is a zombie with threads", lambda: of(vm).state == "Z")
                assert "killed, but cannot die" in of(vm).signs
            vm.process.child.wait(10)


@pytest.mark.live
def test_a_replaced_binary_is_told_and_a_renamed_one_is_not_taken_for_one(short: Path) -> None:
    (short / "bin").mkdir()
    (short / "lib").symlink_to("/usr/lib")  # a QEMU looks for its modules beside the folder that it lies in
    binary = short / "bin" / "qemu-system-x86_64"
    shutil.copy(lab.build("7.2").binary, binary)
    words = ("-nodefaults", "-display", "none", "-machine", "none", "-S", "-qmp", f"unix:{short}/q,server=on,wait=off")
    with lab.site() as there:
        pid = start(there, [binary, *words], log="log").pid
        lab.until("it is up", (short / "q").exists)
        binary.rename(short / "bin" / "old")
        shutil.copy(short / "bin" / "old", binary)
        found = {each.pid: each for each in census(NOWHERE)}[pid]
        # The kernel follows the rename: the process runs bin/old, which nobody has replaced.
        assert not found.binary_replaced
        (short / "bin" / "old").unlink()
        found = {each.pid: each for each in census(NOWHERE)}[pid]
        assert found.binary_replaced
        assert "its binary was replaced since it started" in found.signs
        assert found.qemu_version.startswith(version(lab.build("7.2")))


@pytest.mark.live
def test_one_vm_whose_memory_map_is_locked_does_not_hide_the_others() -> None:
    if not lab.kvm_works():
        lab.missing("needs /dev/kvm")
    with lab.file_system() as storage, lab.qemu("7.2", name="beside") as beside:
        ram = f"memory-backend-file,id=m,size=64M,mem-path={storage.mount}/ram,share=on"
        disk = ("-blockdev", "driver=null-co,node-name=n0,read-zeroes=on", "-device", "virtio-blk-pci,id=vd0,drive=n0")
        with lab.qemu(
            "7.2", "-object", ram, "-machine", "memory-backend=m", "-S", *disk, accelerate=lab.KVM, boots=True
        ) as vm:
            with lab.frozen(storage):
                vm.qmp("cont")
                lab.until("its vCPU hangs", lambda: lab.any_thread_in(vm.pid, "D"))
                with pytest.raises(TimeoutError):
                    vm.qemu_io(lab.of_device("vd0"), "read 0 16M", within=0.5)
                found = {each.pid: each for each in census(NOWHERE)}
                assert found[vm.pid].disks is None
                assert "its memory map is locked" in found[vm.pid].signs
                assert found[vm.pid].qemu_version.startswith(version(lab.build("7.2")))
                assert found[beside.pid].name == "beside"
            vm.process.send(signal.SIGKILL)


def glance_of(**changes: object) -> Glance:
    stat = ProcStat(pid=7, comm="qemu", state="S", threads=3, start_ticks=1, cpu_ticks=1)
    calm = Glance(
        at=1.0, stat=stat, threads=(), asleep=(), wchan="do_sys_poll", switches=9, tracer=0, killed=False
    )  # fmt: skip
    return replace(calm, **changes)  # type: ignore[arg-type]  # the names are Glance's own


def test_a_main_thread_that_has_not_left_a_lock_between_two_looks_waits_for_it() -> None:
    waits = glance_of(wchan="futex_do_wait")
    assert signs.of(waits, waits, TOLD) == ("the main thread waits for a lock",)
    assert signs.of(waits, glance_of(wchan="futex_do_wait", switches=10), TOLD) == ()
    assert signs.of(glance_of(), waits, TOLD) == ()
    assert signs.of(glance_of(), glance_of(), TOLD) == ()


def test_what_cannot_be_read_is_a_sign_only_where_it_hangs() -> None:
    hung, refused = Unanswered("no answer in 0.3 s", hung=True), Unanswered("PermissionError")
    assert signs.of(glance_of(), glance_of(), QemuProcess(refused, refused, None, named=True)) == ()
    assert signs.of(glance_of(), glance_of(), QemuProcess(hung, hung, None, named=True)) == (
        "its binary's file system does not answer",
        "its memory map is locked",
    )


def test_a_tracer_and_a_pending_sigkill_are_signs() -> None:
    assert signs.of(glance_of(), glance_of(tracer=12, killed=True), TOLD) == (
        "SIGKILL is pending",
        "traced by process 12",
    )


def test_a_table_that_is_piped_has_a_line_for_each_vm_however_long_its_name() -> None:
    long = "[bold]web[/bold] " + "x" * 300
    lines = tuple(terminal.ps_lines((vm(name=long, signs=("a sign " * 40,)), vm(name="db1"))))
    assert len(lines) == 3
    assert long in lines[1]
    assert lines[0].split() == ["MANAGER", "NAME", "PID", "QEMU", "DISKS", "REQ", "D", "CPU%", "SIGNS"]
    assert lines[2].split()[:3] == ["plain", "db1", "7"]


def test_a_table_on_a_terminal_is_as_wide_as_that_and_hides_nothing() -> None:
    lines = tuple(terminal.ps_lines((vm(name="web1", signs=("thread 1 hangs", "another sign of trouble")),), 60))
    assert max(map(len, lines)) <= 60
    assert ["another", "sign", "of", "trouble"][-1] in " ".join(lines)


def vm(name: str, signs: tuple[str, ...] = ()) -> ListedVm:
    return ListedVm(
        target="pid:7",
        manager="plain",
        name=name,
        pid=7,
        program="qemu-system",
        qemu_version="7.2.22 (Debian)",
        disks=1,
        parked_requests=None,
        binary_replaced=False,
        state="S",
        threads=3,
        monitors=(),
        threads_in_d=0,
        cpu_percent=3.4,
        signs=signs,
    )
