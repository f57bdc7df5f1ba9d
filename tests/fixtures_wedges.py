"""Sets up the stored cases that need no guest's kernel: I/O is put in flight through the human monitor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import lab
from autopsy.drill.guests import write_boot_sector
from autopsy.drill.machine import start_machine
from autopsy.drill.process import run, states

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
def out_of_space(build: lab.Build) -> Iterator[lab.Machine]:
    """A guest writes to a sparse disk on a file system that is full: QEMU pauses the VM (werror=enospc)."""
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "d.raw")
        write_boot_sector(image)
        run("sync")
        with (mounted.mount / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):  # until not even root may
                pass
        with lab.qemu(build, *virtio(f"file={image}"), boots=True) as machine:
            lab.until("QEMU has paused it", lambda: machine.qmp("query-status")["status"] == "io-error")
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
def _on_frozen(build: lab.Build, engine: str, *, iothread: bool = False) -> Iterator[lab.Machine]:
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "d.raw", mebibytes=16)
        arguments = virtio(f"file={image},{engine}")
        if iothread:
            arguments = (*arguments[:-1], f"{arguments[-1]},iothread=iothread1", "-object", "iothread,id=iothread1")
        with lab.qemu(build, *arguments) as machine:
            machine.qemu_io("disk0", "read 0 4k")
            with lab.frozen(mounted):
                write(machine, "disk0", 1 if "native" in engine else WRITES)
                lab.until("a thread is in D", lambda: "D" in states(machine.pid))
                yield machine


@contextmanager
def frozen_native(build: lab.Build) -> Iterator[lab.Machine]:
    """A write to a disk with aio=native on a frozen ext4: io_submit blocks in the main thread, under the BQL."""
    with _on_frozen(build, "aio=native,cache.direct=on") as machine:
        yield machine


@contextmanager
def frozen_native_iothread(build: lab.Build) -> Iterator[lab.Machine]:
    """A write to a disk with aio=native and an iothread on a frozen ext4: io_submit blocks in the iothread."""
    with _on_frozen(build, "aio=native,cache.direct=on", iothread=True) as machine:
        yield machine


@contextmanager
def frozen_threads(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes to a disk with aio=threads on a frozen ext4."""
    with _on_frozen(build, "aio=threads") as machine:
        yield machine


@contextmanager
def frozen_io_uring(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes to a disk with aio=io_uring on a frozen ext4."""
    with _on_frozen(build, "aio=io_uring,cache.direct=on") as machine:
        yield machine


@contextmanager
def savevm_stalled(build: lab.Build) -> Iterator[lab.Machine]:
    """HMP `savevm` into a qcow2 image on an ext4 that is frozen meanwhile."""
    with lab.file_system() as mounted:
        image = mounted.mount / "d.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
        disk = ("-drive", f"if=none,id=disk0,format=qcow2,file={image}", "-device", "virtio-blk-pci,id=vd0,drive=disk0")
        with lab.qemu(build, *disk) as machine:
            machine.qemu_io("disk0", "write 0 64k")
            with lab.frozen(mounted):
                with suppress(TimeoutError):
                    machine.hmp("savevm now", within=SOON)
                lab.until("a thread is in D", lambda: "D" in states(machine.pid))
                yield machine


@contextmanager
def dump_stalled(build: lab.Build) -> Iterator[lab.Machine]:
    """QMP `dump-guest-memory` to a file on a frozen ext4: the main loop writes it itself."""
    with (
        lab.file_system() as mounted,
        lab.folder() as place,
        lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}"), accelerate=lab.KVM) as machine,
        lab.frozen(mounted),
    ):
        with suppress(TimeoutError):
            machine.qmp("dump-guest-memory", paging=False, protocol=f"file:{mounted.mount}/memory.elf", within=SOON)
        lab.until("a thread is in D", lambda: "D" in states(machine.pid))
        yield machine


@contextmanager
def migrate_file_stalled(build: lab.Build) -> Iterator[lab.Machine]:
    """QMP `migrate` to a file on an ext4 that is frozen once it is open."""
    with (
        lab.file_system() as mounted,
        lab.folder() as place,
        lab.qemu(build, *virtio(f"file={lab.disk(place / 'd.raw')}")) as machine,
    ):
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 4096})
        machine.qmp("migrate", uri=f"file:{mounted.mount}/state")
        lab.until("the file is open", (mounted.mount / "state").exists)
        with lab.frozen(mounted):
            machine.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
            lab.until("a thread is in D", lambda: "D" in states(machine.pid))
            yield machine


@contextmanager
def migrate_unread(build: lab.Build) -> Iterator[lab.Machine]:
    """QMP `migrate` to `exec:sleep`, which reads nothing: the pipe is full, the migration's thread waits."""
    with lab.folder() as place:
        disk = virtio(f"file={lab.disk(place / 'd.raw')}")
        with lab.qemu(build, *disk, boots=True, accelerate=lab.KVM) as machine:
            machine.qmp("migrate", uri="exec:exec sleep 600")
            lab.until(
                "the migration's thread waits for its pipe",
                lambda: lab.waits_in(machine.pid, "pipe_w") or lab.waits_in(machine.pid, "pipe_write"),
            )
            yield machine


@contextmanager
def nbd_silent(build: lab.Build) -> Iterator[lab.Machine]:
    """A qemu-nbd is stopped (SIGSTOP), then eight writes are sent to it: TCP for 7.2, a UNIX socket for the others."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw"), tcp=build.label == "7.2") as server,
        lab.qemu(build, *node(f"driver=nbd,{server.server}")) as machine,
        lab.stopped(server.process),
    ):
        write(machine, lab.of_device("vd0"))
        yield machine


@contextmanager
def nbd_gone(build: lab.Build) -> Iterator[lab.Machine]:
    """A qemu-nbd is killed under a disk with reconnect-delay=3600; then eight writes."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw")) as server,
        lab.qemu(build, *node(f"driver=nbd,reconnect-delay=3600,{server.server}")) as machine,
    ):
        machine.qemu_io(lab.of_device("vd0"), "read 0 4k")
        server.process.end()
        write(machine, lab.of_device("vd0"))
        yield machine


@contextmanager
def fuse_silent(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes to a disk on a FUSE file system whose daemon is stopped (SIGSTOP)."""
    with (
        lab.folder() as place,
        lab.fuse(lab.disk(place / "d.raw")) as export,
        lab.qemu(build, *virtio(f"file={export.file}")) as machine,
        lab.stopped(export.process),
    ):
        write(machine, "disk0")
        lab.until("a worker waits for the daemon", lambda: lab.waits_in(machine.pid, "request_wait_answer"))
        yield machine


@contextmanager
def drain_over_nbd(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes to a qemu-nbd that is stopped, then QMP `stop`, which drains for ever in the main loop."""
    with nbd_silent(build) as machine:
        with suppress(TimeoutError):
            machine.qmp("stop", within=SOON)
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
def backup_target_silent(build: lab.Build) -> Iterator[lab.Machine]:
    """A backup (blockdev-backup, sync=none) to a qemu-nbd that is stopped; then four writes to the disk, each of which
    must wait until the old data has been copied."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "target.raw")) as server,
        lab.qemu(
            build,
            *node(f"driver=file,filename={lab.disk(place / 'd.raw')}"),
            *("-blockdev", f"driver=nbd,node-name=target0,{server.server}"),
        ) as machine,
    ):
        machine.qmp("blockdev-backup", **{"job-id": "backup0", "device": "node0", "target": "target0", "sync": "none"})
        with lab.stopped(server.process):
            write(machine, lab.of_device("vd0"), 4)
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
        machine = start_machine(there, *words, qemu=build.binary, accelerate=lab.TCG)
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
