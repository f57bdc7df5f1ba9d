"""Healthy VMs that do whatever VMs do, each in a function that goes on until it is told to stop."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from autopsy.drill import guests, storage
from autopsy.drill.machine import Machine, QmpRefused
from autopsy.drill.process import start, tool
from autopsy.drill.site import Site, site
from support import lab
from support.builds import Build

LIMIT = "throttling.iops-total=8"  # many guests on few processors: each does little, and without pause
# Nine ticks of its clock (half a second) between two writes: a KVM that is emulated takes 20 ms for each.
NOW_AND_THEN = guests.WRITE_FOR_EVER[:51] + bytes.fromhex("f4" * 9 + "ebcf") + guests.WRITE_FOR_EVER[62:]
SAME_SECTOR = guests.WRITE_FOR_EVER.replace(bytes.fromhex("66ff06587c"), b"\x90" * 5)
DISK = ("-device", "virtio-blk-pci,id=vd0,drive=disk0")


@dataclass(slots=True)
class SoakVm:
    """One VM of the soak: what it does, on which QEMU, and the processes that it is at present."""

    activity: str
    build: Build
    over: threading.Event
    pids: set[int] = field(default_factory=set)
    rounds: int = 0
    trouble: str = ""
    stack: ExitStack = field(default_factory=ExitStack)

    def pause(self, seconds: float) -> None:
        """Wait, but not past the soak's end."""
        self.over.wait(seconds)

    def qemu(self, *words: str, boots: bool = False, at: Site | None = None) -> Machine:
        """Start a QEMU that ends with this VM's part of the soak."""
        accelerate = lab.KVM if boots else lab.TCG
        vm = self.stack.enter_context(
            lab.qemu(self.build, *words, name=self.activity, accelerate=accelerate, boots=boots, at=at)
        )
        self.pids.add(vm.pid)
        return vm

    def writer(self, code: bytes = NOW_AND_THEN, *, engine: str = "", limit: str = LIMIT) -> Machine:
        """Start a guest that writes to its disk for ever."""
        place = self.stack.enter_context(lab.folder())
        image = storage.disk(place / "d")
        with image.open("r+b") as stream:
            stream.write(code.ljust(510, b"\0") + b"\x55\xaa")
        drive = f"if=none,id=disk0,format=raw,file={image}{engine}" + (f",{limit}" if limit else "")
        return self.qemu("-drive", drive, *DISK, boots=True)


def idle(vm: SoakVm) -> None:
    """A VM that halts."""
    vm.qemu()
    while not vm.over.is_set():
        vm.pause(1)
        vm.rounds += 1


def goes_on(vm: SoakVm) -> None:
    """A VM whose guest does all that there is to do."""
    while not vm.over.is_set():
        vm.pause(1)
        vm.rounds += 1


def writes(vm: SoakVm) -> None:
    """A guest that writes one sector after the other."""
    vm.writer(guests.WRITE_FOR_EVER)
    goes_on(vm)


def writes_without_limit(vm: SoakVm) -> None:
    """A guest that writes as fast as it can, for a while in every minute."""
    machine = vm.writer(guests.WRITE_FOR_EVER, limit="")
    while not vm.over.is_set():
        vm.pause(5)
        machine.qmp("stop")
        vm.pause(25)
        machine.qmp("cont")
        vm.rounds += 1


def writes_the_same_sector(vm: SoakVm) -> None:
    """A guest that writes the same sector again and again: every request looks like the one before."""
    vm.writer(SAME_SECTOR, limit="throttling.iops-total=20")
    goes_on(vm)


def writes_natively(vm: SoakVm) -> None:
    """The same by Linux AIO."""
    vm.writer(engine=",aio=native,cache.direct=on")
    goes_on(vm)


def crawls(vm: SoakVm) -> None:
    """A limit that lets one request through each two seconds, and a queue behind it."""
    machine = vm.writer(guests.WRITE_FOR_EVER, limit="throttling.iops-total=1")
    while not vm.over.is_set():
        for place in range(20):
            machine.qemu_io("disk0", f"aio_write {place}M 4k", within=60)
        vm.pause(25)
        vm.rounds += 1


def backs_up(vm: SoakVm) -> None:
    """A backup after the other, of a disk that is written to."""
    machine = vm.writer()
    place = vm.stack.enter_context(lab.folder())
    while not vm.over.is_set():
        target = place / "backup"
        target.unlink(missing_ok=True)
        machine.qmp(
            "drive-backup",
            **{
                "job-id": "b0",
                "device": "disk0",
                "target": str(target),
                "sync": "full",
                "format": "raw",
                "speed": 4 << 20,
            },
        )
        until_no_job(vm, machine)
        vm.pause(5)
        vm.rounds += 1


def mirrors(vm: SoakVm) -> None:
    """A mirror that follows for a minute, and begins anew."""
    machine = vm.writer()
    place = vm.stack.enter_context(lab.folder())
    while not vm.over.is_set():
        target = place / "mirror"
        target.unlink(missing_ok=True)
        machine.qmp(
            "drive-mirror",
            **{"job-id": "m0", "device": "disk0", "target": str(target), "sync": "full", "format": "raw"},
        )
        vm.pause(60)
        with suppress(QmpRefused):
            machine.qmp("block-job-cancel", device="m0")
        until_no_job(vm, machine)
        vm.rounds += 1


def until_no_job(vm: SoakVm, machine: Machine) -> None:
    """Wait until every job has gone."""
    while not vm.over.is_set() and machine.qmp("query-block-jobs"):
        vm.pause(0.5)


def takes_snapshots(vm: SoakVm) -> None:
    """Overlays on top of each other, and the state of the VM saved into an image now and then."""
    place = vm.stack.enter_context(lab.folder())
    image = place / "s.qcow2"
    subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    machine = vm.qemu("-drive", f"if=none,id=disk0,format=qcow2,file={image}", *DISK)
    number = 0
    while not vm.over.is_set():
        machine.qemu_io("disk0", "aio_write 0 16M", within=60)
        machine.hmp("savevm one", within=120)
        machine.hmp("delvm one", within=120)
        number += 1
        overlay = place / f"o{number % 20}.qcow2"
        overlay.unlink(missing_ok=True)
        machine.qmp("blockdev-snapshot-sync", device="disk0", **{"snapshot-file": str(overlay)}, within=60)
        if number % 15 == 0:
            machine.qmp("block-commit", **{"job-id": "c0", "device": "disk0"})
            while machine.qmp("query-block-jobs") and not vm.over.is_set():
                with suppress(QmpRefused):
                    machine.qmp("block-job-complete", device="c0")
                vm.pause(0.5)
        vm.pause(10)
        vm.rounds += 1


def migrates(vm: SoakVm) -> None:
    """A VM that moves from one process to the next."""
    place = vm.stack.enter_context(lab.folder())
    disk = ("-drive", "if=none,id=disk0,driver=null-co,size=64M,read-zeroes=on", *DISK)
    here = vm.qemu(*disk)
    number = 0
    while not vm.over.is_set():
        number += 1
        address = f"unix:{place}/m{number}"
        there = vm.qemu(*disk, "-incoming", address)
        vm.pause(12)  # it waits to be sent something, and that is no stall
        here.qmp("migrate-set-parameters", **{"max-bandwidth": 2 << 20})
        here.qmp("migrate", uri=address)
        while not vm.over.is_set() and here.qmp("query-migrate").get("status") not in {"completed", "failed"}:
            vm.pause(0.5)
        vm.pause(12)  # what was left behind is paused
        vm.pids.discard(here.pid)
        here.process.end()
        here = there
        vm.rounds += 1


def reboots(vm: SoakVm) -> None:
    """A guest that is reset in the middle of its writes."""
    machine = vm.writer()
    while not vm.over.is_set():
        vm.pause(10)
        machine.qmp("system_reset")
        vm.rounds += 1


def plugs(vm: SoakVm) -> None:
    """Disks and memory that come and go."""
    place = vm.stack.enter_context(lab.folder())
    machine = vm.qemu("-device", "virtio-scsi-pci,id=scsi0", "-m", "64,slots=4,maxmem=1G")
    storage.disk(place / "h")
    while not vm.over.is_set():
        machine.qmp("blockdev-add", **{"driver": "file", "node-name": "hot0", "filename": str(place / "h")})
        machine.qmp("device_add", driver="scsi-hd", id="hd0", drive="hot0", bus="scsi0.0")
        vm.pause(4)
        machine.qmp("device_del", id="hd0")
        for _ in range(50):
            try:
                machine.qmp("blockdev-del", **{"node-name": "hot0"})
                break
            except QmpRefused:
                vm.pause(0.2)
        vm.pause(4)
        vm.rounds += 1


def is_paused(vm: SoakVm) -> None:
    """Paused on purpose, and set going again."""
    machine = vm.writer()
    while not vm.over.is_set():
        machine.qmp("stop", within=60)
        vm.pause(20)
        machine.qmp("cont")
        vm.pause(10)
        vm.rounds += 1


def is_stopped(vm: SoakVm) -> None:
    """Under SIGSTOP for a while, with requests in flight."""
    machine = vm.writer()
    while not vm.over.is_set():
        machine.process.send(signal.SIGSTOP)
        vm.pause(15)
        machine.process.send(signal.SIGCONT)
        vm.pause(15)
        vm.rounds += 1


def exports(vm: SoakVm) -> None:
    """An NBD export with a client that mostly waits, beside a guest that writes; and a disk on an NBD server."""
    place = vm.stack.enter_context(lab.folder())
    server = vm.stack.enter_context(lab.nbd(storage.disk(place / "n")))
    there = vm.stack.enter_context(site())
    machine = vm.qemu(
        *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=nbd0"),
    )
    machine.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": f"{place}/export"}})
    machine.qmp("block-export-add", **{"type": "nbd", "id": "e0", "node-name": "nbd0", "name": "disk"})
    uri = f"nbd+unix:///disk?socket={place}/export"
    waits = [word for number in range(2000) for word in ("-c", f"read {number % 60}M 64k", "-c", "sleep 20000")]
    start(there, [*vm.build.tool("qemu-io"), "-r", "-f", "raw", uri, *waits], log="client.log")
    goes_on(vm)


def runs_linux(vm: SoakVm) -> None:
    """A small Linux guest that writes with several jobs."""
    place = vm.stack.enter_context(lab.folder())
    drive = f"if=none,id=disk0,format=raw,file={storage.disk(place / 'd')},throttling.iops-total=30"
    machine = vm.stack.enter_context(
        lab.guest(vm.build, "-drive", drive, *DISK, load="2,4,4096,w,rand,100000", name=vm.activity)
    )
    vm.pids.add(machine.pid)
    goes_on(vm)


def captures(vm: SoakVm) -> None:
    """A VM that is captured by hand again and again."""
    machine = vm.writer()
    place = vm.stack.enter_context(lab.folder())
    program = shutil.which("autopsy") or str(Path(__file__).resolve().parents[2] / ".venv/bin/autopsy")
    while not vm.over.is_set():
        out = place / "out"
        out.mkdir()
        subprocess.run(
            [program, "capture", f"pid:{machine.pid}", "--out", out, "--quiet"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(out)
        vm.pause(45)
        vm.rounds += 1


ACTIVITIES: tuple[Callable[[SoakVm], None], ...] = (
    *(idle, writes, writes_without_limit, writes_the_same_sector, writes_natively, crawls, backs_up, mirrors),
    *(takes_snapshots, migrates, reboots, plugs, is_paused, is_stopped, exports, runs_linux, captures),
)


def live(vm: SoakVm, act: Callable[[SoakVm], None]) -> None:
    """Run one VM until the soak is over; what breaks in what we do to it is told, and begins anew."""
    while not vm.over.is_set():
        with vm.stack:
            try:
                act(vm)
            except BaseException as error:  # noqa: BLE001 - pytest's own too: a VM that broke is told, the others go on
                if not vm.over.is_set():
                    vm.trouble = f"{type(error).__name__}: {error}"[:300]
                    time.sleep(5)
            finally:
                vm.pids.clear()
        vm.stack = ExitStack()
