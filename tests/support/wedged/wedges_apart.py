"""QEMUs whose trouble is not the guest's disk: a job at a limit, a shared limit, a source that is stopped, a crash."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from autopsy.drill import guests
from autopsy.drill.machine import Machine
from autopsy.drill.process import start, tool
from autopsy.drill.site import site
from support import lab
from support.builds import missing
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import A_MOMENT, DISK, NODE, Stuck, in_flight, until_it_works, vhost_user
from support.wedged.wedges_disks import mirror_to_silence

LITTLE = 1 << 16  # bytes a second
BETWEEN_LOOKS = 7.0  # seconds from the beginning of a capture whose looks are ten apart

READS_ALL = """
import socket
with socket.socket(socket.AF_UNIX) as server:
    server.bind({path!r})
    server.listen()
    client, _ = server.accept()
    while client.recv(1 << 16):
        pass
"""


@contextmanager
def mirror_at_a_limit(build: lab.Build) -> Iterator[Stuck]:
    """A mirror whose target has a limit, while the guest writes to its disk as ever."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        with lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={image}", "-device", f"{NODE}=file0"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            until_it_works(vm, 1)
            vm.qmp("object-add", **{"qom-type": "throttle-group", "id": "slow0", "x-bps-total": LITTLE})
            vm.qmp("blockdev-add", **{"driver": "null-co", "node-name": "null0", "size": image.stat().st_size})
            slow = {"driver": "throttle", "node-name": "target0", "throttle-group": "slow0", "file": "null0"}
            vm.qmp("blockdev-add", **slow)
            vm.qmp("blockdev-mirror", **{"job-id": "mirror0", "device": "file0", "target": "target0", "sync": "full"})
            lab.until("it copied", lambda: vm.qmp("query-jobs")[0]["current-progress"] > 0)
            yield Stuck(vm)


@contextmanager
def two_in_one_group(build: lab.Build) -> Iterator[Stuck]:
    """Two disks that share a throttle group, with writes of both in its queue; a third has none."""
    with lab.folder() as place:
        words = []
        for number in range(3):
            shared = ",throttling.bps-total=100,throttling.group=shared0" if number < 2 else ""
            image = lab.disk(place / f"d{number}", mebibytes=16)
            words += ["-drive", f"if=none,id=disk{number},format=raw,file={image}{shared}"]
            words += ["-device", f"virtio-blk-pci,id=vd{number},drive=disk{number}"]
        with lab.qemu(build, *words) as vm:
            for name in ("disk0", "disk1"):
                in_flight(vm, name, 4)
            yield Stuck(vm, ("vd0", "vd1", "shared0"))


@contextmanager
def two_groups(build: lab.Build) -> Iterator[Stuck]:
    """Two disks with limits of their own: one lets hardly a request through, the other all."""
    with lab.folder() as place:
        words = []
        for number, rate in enumerate((10**9, 100)):
            image = lab.disk(place / f"d{number}", mebibytes=16)
            limit = f"throttling.bps-total={rate},throttling.group=group{number}"
            words += ["-drive", f"if=none,id=disk{number},format=raw,file={image},{limit}"]
            words += ["-device", f"virtio-blk-pci,id=vd{number},drive=disk{number}"]
        with lab.qemu(build, *words) as vm:
            for name in ("disk1", "disk0"):
                in_flight(vm, name, 4)
            yield Stuck(vm, ("vd1", "group1"))


@contextmanager
def back_end_on_frozen(build: lab.Build) -> Iterator[Stuck]:
    """A vhost-user-blk back end that listens, and whose image lies on a frozen file system."""
    with lab.file_system() as mounted, vhost_user(build, mounted.mount / "d") as (vm, back_end), lab.frozen(mounted):
        lab.until("it waits for the thaw", lambda: lab.waits_in(back_end.pid, "percpu_rwsem_wait"))
        yield Stuck(vm, ("vd0", str(back_end.pid)), mounted.thaw)


@contextmanager
def source_stopped(build: lab.Build) -> Iterator[Stuck]:
    """A VM that is being migrated here, from a QEMU of this host that is stopped."""
    with lab.folder() as place, lab.qemu(build, "-incoming", "defer", name="there") as there, lab.qemu(build) as vm:
        there.qmp("migrate-incoming", uri=f"unix:{place}/migration")
        vm.qmp("migrate-set-parameters", **{"max-bandwidth": LITTLE})
        vm.qmp("migrate", uri=f"unix:{place}/migration")
        lab.until("it sends", lambda: vm.qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0)
        with lab.stopped(vm):
            yield Stuck(there, (str(vm.pid),), vm.process.resume)


@contextmanager
def ended_meanwhile(build: lab.Build) -> Iterator[Stuck]:
    """A guest that writes to its disk; its QEMU is sent a SIGSEGV while the capture waits for its second look."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        node = ("-blockdev", f"driver=file,node-name=file0,filename={image}", "-device", f"{NODE}=file0")
        with lab.qemu(build, *node, accelerate=lab.TO_BOOT, boots=True) as vm:
            until_it_works(vm, 1)
            hand = threading.Timer(BETWEEN_LOOKS, os.kill, (vm.pid, signal.SIGSEGV))
            hand.start()
            try:
                yield Stuck(vm)
            finally:
                hand.cancel()


@contextmanager
def dumping_into_frozen(build: lab.Build) -> Iterator[Stuck]:
    """A QEMU that has crashed, whose core goes into its working directory on a frozen file system."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if "/" in pattern or "|" in pattern:
        missing("cores go elsewhere here: /proc/sys/kernel/core_pattern")
    with lab.file_system() as mounted, site() as there:
        image = lab.disk(mounted.mount / "d", mebibytes=1)
        rom = there.folder / "halt.rom"
        guests.write_halting_firmware(rom)
        monitor = there.folder / "qmp"
        words = (*build.firmware_arguments, "-nodefaults", "-display", "none", *lab.TCG, "-m", "64", "-bios", rom)
        process = start(
            there,
            [
                *("env", "-C", mounted.mount, build.binary, *words, "-name", "guest=t,debug-threads=on"),
                *("-drive", f"if=none,id=disk0,format=raw,file={image}", *DISK),
                *("-qmp", f"unix:{monitor},server=on,wait=off"),
            ],
            log="qemu.log",
        )
        process.wait_until("it listened", monitor.exists)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with lab.frozen(mounted):
            os.kill(process.pid, signal.SIGSEGV)
            lab.until("it dumps", lambda: lab.waits_in(process.pid, "percpu_rwsem_wait"))
            yield Stuck(Machine(process, monitor, monitor))


@contextmanager
def stop_over_a_mirror(build: lab.Build) -> Iterator[Stuck]:
    """A `stop` that drains a mirror whose target was added while the VM ran, and whose server is stopped."""
    with mirror_to_silence(build, added_later=True) as (vm, server, path):
        with suppress(TimeoutError):
            vm.qmp("stop", within=A_MOMENT)
        yield Stuck(vm, (str(server.pid), path), server.resume)


@contextmanager
def postcopy_cut_off(build: lab.Build) -> Iterator[Stuck]:
    """The source of a migration in postcopy whose connection was given up: the VM stands at the destination."""
    with (
        lab.folder() as place,
        lab.qemu(build, "-incoming", "defer", name="there", memory=256) as there,
        lab.qemu(build, memory=256) as vm,
    ):
        for each in (there, vm):
            each.qmp("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        there.qmp("migrate-incoming", uri=f"unix:{place}/migration")
        vm.qmp("migrate-set-parameters", **{"max-bandwidth": LITTLE, "max-postcopy-bandwidth": LITTLE})
        vm.qmp("migrate", uri=f"unix:{place}/migration")
        lab.until("it sends", lambda: vm.qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0)
        vm.qmp("migrate-start-postcopy")
        lab.until("the VM has moved", lambda: vm.qmp("query-migrate")["status"].startswith("postcopy"))
        vm.qmp("migrate-pause")
        lab.until("it is cut off", lambda: vm.qmp("query-migrate")["status"] == "postcopy-paused")
        yield Stuck(vm)


@contextmanager
def fifo_of_a_stopped_program(build: lab.Build) -> Iterator[Stuck]:
    """Guest memory is saved to a FIFO that a program has open to read, which is stopped."""
    with lab.folder() as place, lab.qemu(build) as vm:
        path = place / "fifo"
        os.mkfifo(path)
        code = f"import os, time; end = os.open({str(path)!r}, os.O_RDONLY | os.O_NONBLOCK); print(1, flush=True)"
        with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(600)"], stdout=subprocess.PIPE) as reader:
            try:
                assert reader.stdout
                reader.stdout.readline()
                os.kill(reader.pid, signal.SIGSTOP)
                with suppress(TimeoutError):
                    vm.qmp("pmemsave", val=0, size=1 << 20, filename=str(path), within=A_MOMENT)
                yield Stuck(vm, (str(path), str(reader.pid)))
            finally:
                os.kill(reader.pid, signal.SIGKILL)


@contextmanager
def bus(build: lab.Build, *, stops: bool = True, asks: bool = True) -> Iterator[Stuck]:
    """A migration asks a D-Bus which helpers have a state to be sent, and the bus's daemon is stopped."""
    with lab.folder() as place, site() as there:
        address, destination = f"unix:path={place}/bus", place / "destination"
        daemon = start(there, [tool("dbus-daemon"), "--session", "--nofork", f"--address={address}"], log="bus")
        daemon.wait_until("the bus is there", (place / "bus").exists)
        reader = start(there, [sys.executable, "-c", READS_ALL.format(path=str(destination))], log="destination")
        reader.wait_until("the destination is there", destination.exists)
        with lab.qemu(build, "-object", f"dbus-vmstate,id=vmstate0,addr={address}") as vm, ExitStack() as ends:
            if stops:
                ends.enter_context(lab.stopped(daemon))
            if asks:
                with suppress(TimeoutError):
                    vm.qmp("migrate", within=A_MOMENT, uri=f"unix:{destination}")
            time.sleep(A_MOMENT)
            yield Stuck(vm, (f"dbus-daemon {daemon.pid}",), daemon.resume)
