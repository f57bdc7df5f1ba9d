"""Sets up the stored cases that need no guest's kernel: I/O is put in flight through the human monitor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from autopsy.drill.guests import write_boot_sector
from autopsy.drill.machine import start_machine
from support import lab
from support.wedged.wedges import Stuck

SOON = 0.5  # what a monitor gets whose main loop is about to go under
WRITES = 8
ROM = 64 * 1024
SPIN = bytes.fromhex("ebfe")  # jmp to itself
SHOUT = bytes.fromhex("ba0204 b02e ee ebfd")  # dx = 402h; al = '.'; out dx, al; jmp to the out


def virtio(drive: str, *more: str) -> tuple[str, ...]:
    """Return the arguments of a -drive that a virtio disk uses."""
    return ("-drive", f"if=none,id=disk0,format=raw,{drive}", "-device", "virtio-blk-pci,id=vd0,drive=disk0", *more)


def node(driver: str) -> tuple[str, ...]:
    """Return the arguments of a -blockdev that a virtio disk uses."""
    return ("-blockdev", f"{driver},node-name=node0", "-device", "virtio-blk-pci,id=vd0,drive=node0")


def write(machine: lab.Machine, target: str, number: int = WRITES) -> None:
    """Put writes in flight; a main loop that goes under with them answers no more, and that is as it should be."""
    for each in range(number):
        with suppress(TimeoutError):
            machine.qemu_io(target, f"aio_write {each}M 64k", within=SOON)


@contextmanager
def throttle_timer(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes of 64 KiB to a disk that is limited to one byte a second (-drive throttling.bps-total=1)."""
    with lab.folder() as place:
        limits = "throttling.bps-total=1,throttling.group=limits"
        with lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')},{limits}")) as machine:
            write(machine, "disk0")
            yield machine


@contextmanager
def throttle_node(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes of 64 KiB behind a throttle filter node whose group allows one byte a second; the disk has an
    iothread."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-object", "iothread,id=iothread1", "-object", "throttle-group,id=limits,x-bps-total=1"),
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd.raw')}"),
            *("-blockdev", "driver=throttle,node-name=throttle0,throttle-group=limits,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=throttle0,iothread=iothread1"),
        ) as machine,
    ):
        write(machine, lab.of_device("vd0"))
        yield machine


@contextmanager
def throttle_stale(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes of 64 KiB behind a throttle filter node at one byte a second; then `qom-set` allows 100 MB/s, which
    changes the limit and leaves the timer as it was."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-object", "throttle-group,id=limits,x-bps-total=1"),
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd.raw')}"),
            *("-blockdev", "driver=throttle,node-name=throttle0,throttle-group=limits,file=file0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=throttle0"),
        ) as machine,
    ):
        write(machine, lab.of_device("vd0"))
        machine.qmp("qom-set", path="/objects/limits", property="limits", value={"bps-total": 100_000_000})
        yield machine


@contextmanager
def healthy_idle(build: lab.Build) -> Iterator[lab.Machine]:
    """A VM with two disks, one of them with an iothread, and nothing to do; its vCPU halts."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *virtio(f"file={lab.disk(place / 'd.raw')}"),
            *("-object", "iothread,id=iothread1"),
            *("-blockdev", f"driver=file,node-name=node1,filename={lab.disk(place / 'e.raw')}"),
            *("-device", "virtio-blk-pci,id=vd1,drive=node1,iothread=iothread1"),
            accelerate=lab.KVM,
        ) as machine,
    ):
        machine.qemu_io("disk0", "write 0 64k")
        yield machine


@contextmanager
def healthy_writer(build: lab.Build) -> Iterator[lab.Machine]:
    """A boot sector under KVM that writes one sector after the other through the BIOS."""
    with lab.folder() as place:
        image = lab.disk(place / "d.raw")
        write_boot_sector(image)
        with lab.qemu(build, *virtio(f"file={image}"), accelerate=lab.KVM, boots=True) as machine:
            lab.until("its guest wrote", lambda: _written(machine) > 10)
            yield machine


@contextmanager
def guest_spins(build: lab.Build) -> Iterator[lab.Machine]:
    """A vCPU under KVM whose first instruction jumps to itself, beside a disk that nobody asks for anything."""
    with lab.folder() as place:
        rom = _firmware(place, SPIN)
        disk = virtio(f"file={lab.disk(place / 'd.raw')}")
        with lab.qemu(build, *disk, "-bios", str(rom), accelerate=lab.KVM, boots=True) as machine:
            yield machine


@contextmanager
def paused(build: lab.Build) -> Iterator[lab.Machine]:
    """A VM that somebody paused by QMP `stop`."""
    with lab.folder() as place, lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}")) as machine:
        machine.qmp("stop")
        yield machine


@contextmanager
def prelaunch(build: lab.Build) -> Iterator[lab.Machine]:
    """A VM that was started with -S and never told to go on."""
    with lab.folder() as place, lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}"), "-S") as machine:
        yield machine


@contextmanager
def incoming(build: lab.Build) -> Iterator[lab.Machine]:
    """A QEMU that waits for an incoming migration which nobody sends."""
    with lab.folder() as place:
        arguments = (*virtio(f"file={lab.disk(place / 'd.raw')}"), "-incoming", f"unix:{place}/migration")
        with lab.qemu(build, *arguments) as machine:
            yield machine


@contextmanager
def stopped(build: lab.Build) -> Iterator[lab.Machine]:
    """A QEMU under SIGSTOP."""
    with (
        lab.folder() as place,
        lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}")) as machine,
        lab.stopped(machine),
    ):
        yield machine


@contextmanager
def cgroup_frozen(build: lab.Build) -> Iterator[lab.Machine]:
    """A QEMU whose control group is frozen."""
    with (
        lab.folder() as place,
        lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}")) as machine,
        lab.frozen_cgroup(machine.pid),
    ):
        yield machine


@contextmanager
def blkdebug(build: lab.Build) -> Iterator[lab.Machine]:
    """A write that a blkdebug breakpoint holds."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd.raw')}"),
            *node("driver=blkdebug,image=file0"),
        ) as machine,
    ):
        for line in ("break pwritev drill", "aio_write 0 64k", "wait_break drill"):
            machine.qemu_io(lab.of_device("vd0"), line)
        yield machine


@contextmanager
def mirror_ready(build: lab.Build) -> Iterator[lab.Machine]:
    """A mirror that is ready and waits for its manager to complete it; the disk has nothing else to do."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *node(f"driver=file,filename={lab.disk(place / 'd.raw')}"),
            *("-blockdev", f"driver=file,node-name=target0,filename={lab.disk(place / 'target.raw')}"),
        ) as machine,
    ):
        machine.qmp("blockdev-mirror", **{"job-id": "mirror0", "device": "node0", "target": "target0", "sync": "full"})
        lab.until("it is ready", lambda: [each["status"] for each in machine.qmp("query-jobs")] == ["ready"])
        yield machine


@contextmanager
def one_of_64(build: lab.Build) -> Iterator[lab.Machine]:
    """64 disks behind one virtio-scsi controller; one is limited to one byte a second and has eight writes in flight,
    the others have completed a write each."""
    with lab.folder() as place:
        words: list[str] = ["-device", "virtio-scsi-pci,id=scsihw0"]
        for number in range(64):
            limit = ",throttling.bps-total=1" if number == 37 else ""
            file = lab.disk(place / f"{number}.raw")
            words += ["-drive", f"if=none,id=drive-scsi{number},format=raw,file={file}{limit}"]
            words += ["-device", f"scsi-hd,bus=scsihw0.0,lun={number},drive=drive-scsi{number},id=scsi{number}"]
        with lab.qemu(build, *words) as machine:
            for number in range(64):
                if number != 37:
                    machine.qemu_io(f"drive-scsi{number}", "write 0 4k")
            write(machine, "drive-scsi37")
            yield machine


@contextmanager
def monitor_held(build: lab.Build) -> Iterator[lab.Machine]:
    """A VM with one monitor, which another program has connected to and keeps."""
    hold = "import socket,sys,time; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(9); time.sleep(600)"
    with lab.site() as there:
        disk = virtio(f"file={lab.disk(there.folder / 'd.raw')}")
        words = (*build.firmware_arguments, "-name", "guest=t,debug-threads=on", "-m", "64", *disk)
        machine = start_machine(there, *words, qemu=build.command, accelerate=lab.TCG)
        with subprocess.Popen([sys.executable, "-c", hold, str(machine.monitor)]) as holder, ExitStack() as undo:
            undo.callback(holder.kill)
            lab.until("it holds the monitor", lambda: _connected(holder.pid))
            yield machine


@contextmanager
def chardev_unread(build: lab.Build) -> Iterator[lab.Machine]:
    """A guest under KVM writes to the debug console (isa-debugcon, port 402h) without end; it goes to a FIFO that is
    open at the other end and never read."""
    with lab.folder() as place:
        for end in ("in", "out"):
            os.mkfifo(place / f"console.{end}")
        reader = os.open(place / "console.out", os.O_RDONLY | os.O_NONBLOCK)
        try:
            words = (
                *virtio(f"file={lab.disk(place / 'd.raw')}"),
                *("-chardev", f"pipe,id=console,path={place}/console"),
                *("-device", "isa-debugcon,iobase=0x402,chardev=console"),
                *("-bios", str(_firmware(place, SHOUT)), "-S"),
            )
            with lab.qemu(build, *words, accelerate=lab.KVM, boots=True) as machine:
                with suppress(TimeoutError):
                    machine.qmp("cont", within=SOON)
                lab.until("a vCPU waits for the pipe", lambda: not _answers(machine))
                yield machine
        finally:
            os.close(reader)


def machine_of(set_up: Callable[[lab.Build], AbstractContextManager[Stuck]]) -> Callable[..., Any]:
    """Return what sets up a live test's wedge as what sets up a stored case."""

    @contextmanager
    @wraps(set_up)
    def machine(build: lab.Build) -> Iterator[lab.Machine]:
        with set_up(build) as it:
            yield it.vm

    return machine


def _firmware(place: Path, code: bytes) -> Path:
    """Write a firmware whose first instruction, at the reset vector, is the code's."""
    rom = place / "firmware.rom"
    rom.write_bytes((bytes(ROM - 16) + code).ljust(ROM, b"\0"))
    return rom


def _answers(machine: lab.Machine) -> bool:
    try:
        machine.qmp("query-status", within=1.0)
    except TimeoutError:
        return False
    return True


def _written(machine: lab.Machine) -> int:
    return sum(int(each["stats"]["wr_operations"]) for each in machine.qmp("query-blockstats"))


def _connected(pid: int) -> bool:
    wchan = Path(f"/proc/{pid}/wchan").read_text()
    return "sleep" in wchan
