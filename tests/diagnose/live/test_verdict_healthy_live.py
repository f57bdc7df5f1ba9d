"""No false alarm: QEMUs with nothing wrong, whatever goes on in them and around them."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from autopsy.drill import guests
from autopsy.drill.machine import Machine, of_device, start_machine
from autopsy.drill.process import start, tool
from autopsy.drill.site import site
from support import lab
from support.verdicts import captured
from support.wedged import wedges
from support.wedged.small_guests import ENOUGH

pytestmark = pytest.mark.live

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
soak = pytest.mark.soak


@contextmanager
def idle(label: str, accelerate: tuple[str, ...] = lab.KVM, *, iothread: bool = False) -> Iterator[Machine]:
    with (
        lab.folder() as place,
        lab.qemu(
            label,
            *("-drive", f"if=none,id=disk0,format=raw,file={lab.disk(place / 'd')}"),
            *("-object", "iothread,id=iothread0"),
            *wedges.DISK[:-1],
            wedges.DISK[-1] + (",iothread=iothread0" if iothread else ""),
            accelerate=accelerate,
        ) as vm,
    ):
        yield vm


@contextmanager
def writing(label: str, engine: str = "aio=threads", accelerate: tuple[str, ...] = lab.TO_BOOT) -> Iterator[Machine]:
    """A guest that writes one sector after the other."""
    with lab.folder() as place:
        image = lab.disk(place / "d")
        guests.write_boot_sector(image)
        with lab.qemu(
            label,
            *("-drive", f"if=none,id=disk0,format=raw,file={image},{engine}"),
            *wedges.DISK,
            accelerate=accelerate,
            boots=True,
        ) as vm:
            lab.until("it wrote", lambda: wedges.completed(vm)[1] > ENOUGH, seconds=wedges.BOOT_SECONDS)
            yield vm


@pytest.mark.parametrize(
    ("label", "accelerate"),
    [(OLD, lab.TCG), (NEW, lab.KVM), pytest.param(NEW, lab.TCG, marks=soak), pytest.param(DEBUG, lab.KVM, marks=soak)],
)
def test_an_idle_vm_is_healthy(label: str, accelerate: tuple[str, ...], tmp_path: Path) -> None:
    with idle(label, accelerate) as vm:
        verdict = captured(vm.pid, tmp_path)
        assert (verdict.where, verdict.confidence) == ("none", "proven"), verdict


@pytest.mark.parametrize("label", [NEWEST, pytest.param(OLD, marks=soak), pytest.param(NEW, marks=soak)])
def test_an_idle_vm_with_an_iothread_is_healthy(label: str, tmp_path: Path) -> None:
    with idle(label, iothread=True) as vm:
        verdict = captured(vm.pid, tmp_path)
        assert (verdict.where, verdict.confidence) == ("none", "proven"), verdict


@pytest.mark.parametrize(
    ("label", "engine"),
    [
        (NEW, "aio=threads"),
        (OLD, "aio=native,cache=none"),
        (NEWEST, "aio=io_uring"),
        pytest.param(NEW, "aio=io_uring", marks=soak),
        pytest.param(DEBUG, "aio=native,cache=none", marks=soak),
        pytest.param(OLD, "aio=io_uring", marks=soak),
    ],
)
def test_a_vm_that_writes_is_healthy(label: str, engine: str, tmp_path: Path) -> None:
    with writing(label, engine, lab.KVM if label == NEWEST else lab.TO_BOOT) as vm:
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict


@pytest.mark.parametrize("label", [NEW, pytest.param(OLD, marks=soak), pytest.param(DEBUG, marks=soak)])
def test_a_vm_that_its_limits_slow_down_is_healthy(label: str, tmp_path: Path) -> None:
    with writing(label) as vm:
        vm.qmp("block_set_io_throttle", device="disk0", bps=0, bps_rd=0, bps_wr=0, iops=10, iops_rd=0, iops_wr=0)
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict


def test_a_slow_nbd_server_is_not_a_silent_one(tmp_path: Path) -> None:
    with lab.folder() as place, site() as there:
        server = start(
            there,
            [
                *(tool("qemu-storage-daemon"), "--nbd-server", f"addr.type=unix,addr.path={place}/nbd"),
                *("--blockdev", "driver=null-co,node-name=n0,size=67108864,latency-ns=100000000,read-zeroes=on"),
                *("--export", "type=nbd,id=export0,node-name=n0,name=,writable=on"),
            ],
            log="server.log",
        )
        server.wait_until("it listened", (place / "nbd").exists)
        with (
            lab.qemu(
                NEW,
                *("-blockdev", f"driver=nbd,node-name=nbd0,server.type=unix,server.path={place}/nbd"),
                *("-device", f"{wedges.NODE}=nbd0"),
            ) as vm,
            asking(lambda: vm.qemu_io(of_device("vd0"), "aio_write 0 4k")),
        ):
            lab.until("writes were answered", lambda: wedges.completed(vm)[1] > 2)
            verdict = captured(vm.pid, tmp_path)
            assert verdict.where == "none", verdict


@contextmanager
def asking(question: object) -> Iterator[None]:
    """Put a question over and over while the block runs."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            with suppress(OSError):
                question()  # type: ignore[operator]  # a function without arguments

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_resets_all_the_time_are_no_wedge(tmp_path: Path) -> None:
    with idle(OLD) as vm, asking(lambda: vm.qmp("system_reset")):
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict


@pytest.mark.parametrize(
    ("word", "where", "signature"), [("-S", "vm-state", "vm-prelaunch"), ("-incoming", "migration", "vm-inmigrate")]
)
def test_a_vm_that_was_never_started_is_told_as_that(word: str, where: str, signature: str, tmp_path: Path) -> None:
    with lab.qemu(OLD, word, *(["tcp:127.0.0.1:0"] if word == "-incoming" else [])) as vm:
        verdict = captured(vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == (where, signature), verdict


def test_a_pause_is_a_pause_even_on_a_frozen_file_system(tmp_path: Path) -> None:
    with (
        lab.file_system() as mounted,
        lab.qemu(
            NEW,
            *("-drive", f"if=none,id=disk0,format=raw,file={lab.disk(mounted.mount / 'd', mebibytes=16)}"),
            *wedges.DISK,
        ) as vm,
    ):
        vm.qmp("stop")
        with lab.frozen(mounted):
            verdict = captured(vm.pid, tmp_path / "paused")
            assert (verdict.where, verdict.signature) == ("vm-state", "vm-paused"), verdict
        vm.qmp("cont")
        with lab.frozen(mounted):
            verdict = captured(vm.pid, tmp_path / "idle")
            assert verdict.where == "none", verdict


@contextmanager
def mirroring(label: str) -> Iterator[Machine]:
    with (
        lab.folder() as place,
        lab.qemu(
            label,
            *("-blockdev", f"driver=file,node-name=f0,filename={lab.disk(place / 'd')}"),
            *("-blockdev", f"driver=file,node-name=target0,filename={lab.disk(place / 'target')}"),
            *("-device", f"{wedges.NODE}=f0"),
        ) as vm,
    ):
        vm.qemu_io(of_device("vd0"), "write -P 3 0 32M")
        vm.qmp(
            "blockdev-mirror",
            **{"job-id": "job0", "device": "f0", "target": "target0", "sync": "full", "speed": 2_000_000},
        )
        yield vm


def status(vm: Machine) -> str:
    return str(vm.qmp("query-jobs")[0]["status"])


@pytest.mark.parametrize("label", [NEW, pytest.param(OLD, marks=soak), pytest.param(DEBUG, marks=soak)])
def test_jobs_that_run_slowly_or_wait_for_a_word_harm_nobody(label: str, tmp_path: Path) -> None:
    with mirroring(label) as vm:
        verdict = captured(vm.pid, tmp_path / "slow")
        assert verdict.where == "none", verdict
        vm.qmp("job-pause", id="job0")
        lab.until("it was paused", lambda: status(vm) == "paused")
        verdict = captured(vm.pid, tmp_path / "paused")
        assert (verdict.where, verdict.secondary) == ("none", {"job-waits-for-manager"}), verdict
        vm.qmp("job-resume", id="job0")
        vm.qmp("block-job-set-speed", device="job0", speed=0)
        lab.until("it was ready", lambda: status(vm) == "ready")
        verdict = captured(vm.pid, tmp_path / "ready")
        assert (verdict.where, verdict.secondary) == ("none", {"job-waits-for-manager"}), verdict


@soak
def test_a_second_monitor_makes_up_for_one_that_is_held(tmp_path: Path) -> None:
    with idle(OLD) as vm, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(vm.monitor))
        client.recv(4096)
        verdict = captured(vm.pid, tmp_path)
        assert verdict.where == "none", verdict


@pytest.mark.parametrize("label", [OLD, NEW])
def test_a_held_monitor_is_told_with_its_holder(label: str, tmp_path: Path) -> None:
    chosen = lab.build(label)
    with site() as there, socket.socket(socket.AF_UNIX) as client:
        vm = start_machine(there, *chosen.firmware_arguments, qemu=chosen.command, accelerate=lab.TCG)
        client.connect(str(vm.monitor))
        client.recv(4096)
        verdict = captured(vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == ("control", "monitor-held"), verdict
        assert str(os.getpid()) in verdict.objects, verdict


@soak
def test_a_migration_that_its_bandwidth_slows_down_is_not_stuck(tmp_path: Path) -> None:
    with lab.folder() as place:
        noise = place / "noise"
        noise.write_bytes(bytes(range(1, 251)) * 100_000)
        with lab.qemu(OLD, "-device", f"loader,file={noise},addr=0x400000,force-raw=on", memory=128) as vm:
            vm.qmp("migrate-set-parameters", **{"max-bandwidth": 1_000_000})
            vm.qmp("migrate", uri="exec:cat >/dev/null")
            lab.until("it began", lambda: vm.qmp("query-migrate").get("status") == "active")
            verdict = captured(vm.pid, tmp_path)
            assert verdict.where == "none", verdict


def test_a_host_that_is_busy_makes_no_wedge(tmp_path: Path) -> None:
    with writing(NEW) as vm:
        burning = [subprocess.Popen([tool("sh"), "-c", "while :; do :; done"]) for _ in range(3)]
        try:
            verdict = captured(vm.pid, tmp_path)
            assert verdict.where == "none", verdict
        finally:
            for each in burning:
                each.kill()
                each.wait()


@soak
def test_a_guest_that_sleeps_is_healthy(tmp_path: Path) -> None:
    with wedges.running(lab.build(NEW), guests.HALT) as it:
        verdict = captured(it.vm.pid, tmp_path, "--gap", "3.5")
        assert verdict.where == "none", verdict


@pytest.mark.parametrize("label", [OLD, NEW])
def test_a_guest_that_burns_its_cpu_is_the_guests_own_affair(label: str, tmp_path: Path) -> None:
    with wedges.running(lab.build(label), wedges.SPIN, accelerate=lab.KVM) as it:
        verdict = captured(it.vm.pid, tmp_path, "--gap", "3.5")
        assert (verdict.where, verdict.signature) == ("guest", "guest-spins"), verdict


@soak
def test_a_guest_that_switched_itself_off_is_told_as_that(tmp_path: Path) -> None:
    with wedges.running(lab.build(NEW), wedges.POWER_OFF, ("-no-shutdown",), ends_in="shutdown") as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == ("vm-state", "vm-shutdown"), verdict


@soak
def test_a_guest_that_resets_itself_for_ever_is_no_wedge(tmp_path: Path) -> None:
    with wedges.running(lab.build(NEW), wedges.RESET) as it:
        time.sleep(1)
        verdict = captured(it.vm.pid, tmp_path)
        assert verdict.where in {"none", "guest"}, verdict
