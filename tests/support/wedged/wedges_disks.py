"""QEMUs whose disks are stuck: behind limits, servers, file systems, drivers, jobs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autopsy.drill import guests
from autopsy.drill.machine import Machine, of_device
from autopsy.drill.process import DrillProcess, states, tool
from support import lab
from support.limited import io_limited
from support.wedged.small_guests import READ_NOW_AND_THEN, boot_sector
from support.wedged.wedges import (
    A_MOMENT,
    BOOT_SECONDS,
    DISK,
    NODE,
    Stuck,
    completed,
    in_flight,
    until_it_works,
)


@contextmanager
def throttled(build: lab.Build, requests: int = 64) -> Iterator[Stuck]:
    """Writes behind a -drive's own limits."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            "-drive",
            f"if=none,id=disk0,format=raw,file={lab.disk(place / 'd')},throttling.bps-total=1,throttling.group=limits",
            *DISK,
        ) as vm,
    ):
        in_flight(vm, "disk0", requests)

        def lift() -> None:
            vm.qmp("block_set_io_throttle", device="disk0", **dict.fromkeys(("bps_rd", "bps_wr"), 0), **UNLIMITED)

        yield Stuck(vm, ("vd0", "throttle group limits"), lift)


UNLIMITED = {"bps": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


@contextmanager
def throttle_node(build: lab.Build, *, stale: bool = False) -> Iterator[Stuck]:
    """Writes behind a throttle filter node in an iothread; `stale` raises its limits under them."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-object", "iothread,id=io0", "-object", "throttle-group,id=limits,x-bps-total=100"),
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-blockdev", "driver=throttle,node-name=node0,throttle-group=limits,file=file0"),
            # Without a geometry QEMU reads the first sector for one, and that counts, too.
            *("-device", f"{NODE}=node0,iothread=io0,cyls=100,heads=16,secs=63"),
        ) as vm,
    ):
        in_flight(vm, of_device("vd0"), 15, size="1M")  # the first goes through, the others wait for hours
        lab.until("the first was done", lambda: completed(vm)[1] == 1)
        if stale:
            vm.qmp("qom-set", path="/objects/limits", property="limits", value={"bps-total": 100_000_000})
        yield Stuck(vm, ("vd0", "throttle group limits"))


@contextmanager
def writes_throttled_while_reads_flow(build: lab.Build) -> Iterator[Stuck]:
    """Only writes have a limit, and the guest goes on reading."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), READ_NOW_AND_THEN)
        with lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,format=raw,file={image},throttling.bps-write=1"),
            *DISK,
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            until_it_works(vm, 0)
            in_flight(vm, "disk0", 4)
            yield Stuck(vm, ("vd0",))


@contextmanager
def nbd_stopped(build: lab.Build, *, tcp: bool = False, requests: int = 20, stopping: bool = False) -> Iterator[Stuck]:
    """An NBD server under SIGSTOP; `stopping` has QMP's `stop` drain over it."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d"), tcp=tcp) as server,
        lab.qemu(
            build,
            *("-object", "iothread,id=io0"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", f"{NODE}=nbd0,iothread=io0"),
        ) as vm,
        lab.stopped(server.process),
    ):
        in_flight(vm, of_device("vd0"), requests)
        if stopping:
            with suppress(TimeoutError):
                vm.qmp("stop", within=A_MOMENT)
        yield Stuck(vm, ("vd0", f"qemu-nbd {server.process.pid}"), server.process.resume)


@contextmanager
def nbd_killed(build: lab.Build) -> Iterator[Stuck]:
    """An NBD server that is gone, and a client that tries to reach it again."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d")) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=nbd,node-name=nbd0,reconnect-delay=1000,{server.server}"),
            *("-device", f"{NODE}=nbd0"),
        ) as vm,
    ):
        server.process.end()
        in_flight(vm, of_device("vd0"))
        yield Stuck(vm, ("vd0", "nbd.sock"))


@contextmanager
def frozen(build: lab.Build, engine: str, *, iothread: bool = False, disks: int = 1) -> Iterator[Stuck]:
    """Writes to a frozen file system: the last of the disks lies on it, the others do not."""
    with lab.file_system() as mounted, lab.folder() as place:
        words = ["-object", "iothread,id=io0", "-device", "virtio-scsi-pci,id=scsi0"]
        words[-1] += ",iothread=io0" if iothread else ""
        for number in range(disks):
            image = lab.disk((mounted.mount if number == disks - 1 else place) / f"d{number}", mebibytes=16)
            words += ["-drive", f"if=none,id=disk{number},format=raw,file={image},{engine}"]
            words += ["-device", f"scsi-hd,id=hd{number},drive=disk{number},lun={number}"]
        with lab.qemu(build, *words) as vm, lab.frozen(mounted):
            in_flight(vm, f"disk{disks - 1}", 4, within=A_MOMENT)
            yield Stuck(vm, (f"disk{disks - 1}", str(mounted.mount)), mounted.thaw)


@contextmanager
def limited_by_the_host(build: lab.Build, engine: str) -> Iterator[Stuck]:
    """Writes to a disk that the VM's control group may write a thousand bytes a second to."""
    with lab.folder() as place:
        image = lab.disk(place / "d")
        drive = f"if=none,id=disk0,format=raw,file={image},cache.direct=on,aio={engine}"
        with lab.qemu(build, "-drive", drive, *DISK) as vm, io_limited(vm.pid, image, 1000) as (group, lift):
            in_flight(vm, "disk0", 4, size="1M")
            yield Stuck(vm, ("vd0", f"cgroup {group}"), lift)


@contextmanager
def fuse_stopped(build: lab.Build) -> Iterator[Stuck]:
    """A disk on a FUSE file system whose daemon is stopped."""
    with (
        lab.folder() as place,
        lab.fuse(lab.disk(place / "d")) as export,
        lab.qemu(build, "-drive", f"if=none,id=disk0,format=raw,file={export.file}", *DISK) as vm,
        lab.stopped(export.process),
    ):
        in_flight(vm, "disk0", 4)
        lab.until("a thread waits for the daemon", lambda: lab.waits_in(vm.pid, "request_wait_answer"))
        yield Stuck(vm, ("vd0", f"{export.process.pid}"), export.process.resume)


@contextmanager
def added_from_stopped_fuse(build: lab.Build) -> Iterator[Stuck]:
    """A disk is added whose file lies on a FUSE file system with a stopped daemon: no descriptor leads there yet."""
    with (
        lab.folder() as place,
        lab.fuse(lab.disk(place / "d")) as export,
        lab.qemu(build) as vm,
        lab.stopped(export.process),
    ):
        with suppress(TimeoutError):
            vm.qmp(
                "blockdev-add", **{"driver": "file", "node-name": "f0", "filename": str(export.file)}, within=A_MOMENT
            )
        lab.until("a thread waits for the daemon", lambda: lab.waits_in(vm.pid, "request_wait_answer"))
        yield Stuck(vm, (str(export.file), str(export.process.pid)), export.process.resume)


@contextmanager
def stop_over_blkdebug(build: lab.Build) -> Iterator[Stuck]:
    """A write that blkdebug has suspended, and a QMP `stop` that drains over it for ever."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-blockdev", "driver=blkdebug,node-name=debug0,image=file0"),
            *("-device", f"{NODE}=debug0"),
        ) as vm,
    ):
        vm.qemu_io(of_device("vd0"), "break pwritev A")
        vm.qemu_io(of_device("vd0"), "aio_write 0 4k")
        with suppress(TimeoutError):
            vm.qmp("stop", within=A_MOMENT)
        yield Stuck(vm, ("vd0",))


@contextmanager
def null_with_latency(build: lab.Build, driver: str) -> Iterator[Stuck]:
    """A block driver that takes minutes for each request; the geometry is told, so that nothing is read for it."""
    with lab.qemu(
        build,
        *("-blockdev", f"driver={driver},node-name=null0,size=1073741824,latency-ns=1000000000000"),
        *("-device", f"{NODE}=null0,cyls=1000,heads=16,secs=63"),
    ) as vm:
        in_flight(vm, of_device("vd0"))
        yield Stuck(vm, ("vd0",))


@contextmanager
def backing_stalled_while_others_flow(build: lab.Build) -> Iterator[Stuck]:
    """Reads that a qcow2 disk has to fetch from its backing file wait; those that it has itself go on."""
    with lab.folder() as place:
        raw = boot_sector(lab.disk(place / "boot"), READ_NOW_AND_THEN)
        with raw.open("r+b") as stream:
            for block in range(16):
                stream.seek(block << 20)
                stream.write(READ_NOW_AND_THEN.ljust(510, b"\0") + b"\x55\xaa" + b"x" * ((1 << 20) - 512))
        top = place / "top.qcow2"
        subprocess.run([tool("qemu-img"), "convert", "-O", "qcow2", raw, top], check=True)
        with (
            lab.nbd(lab.disk(place / "base")) as server,
            lab.qemu(
                build,
                *("-blockdev", f"driver=nbd,node-name=base0,{server.server}"),
                *("-blockdev", f"driver=file,node-name=file0,filename={top}"),
                *("-blockdev", "driver=qcow2,node-name=top0,file=file0,backing=base0"),
                *("-device", f"{NODE}=top0"),
                accelerate=lab.TO_BOOT,
                boots=True,
            ) as vm,
        ):
            until_it_works(vm, 0)
            with lab.stopped(server.process):
                for number in range(4):
                    vm.qemu_io(of_device("vd0"), f"aio_read {40 + number}M 4k")
                yield Stuck(vm, ("vd0", f"qemu-nbd {server.process.pid}"), server.process.resume)


@contextmanager
def backup_stalled_while_reads_flow(build: lab.Build) -> Iterator[Stuck]:
    """A backup whose target does not answer holds the guest's writes; its reads go on."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "target")) as server,
        lab.qemu(
            build,
            "-blockdev",
            f"driver=file,node-name=f0,filename={boot_sector(lab.disk(place / 'd'), READ_NOW_AND_THEN)}",
            *("-blockdev", f"driver=nbd,node-name=target0,{server.server}"),
            *("-device", f"{NODE}=f0"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm,
    ):
        until_it_works(vm, 0)
        with lab.stopped(server.process):
            vm.qmp("blockdev-backup", **{"job-id": "job0", "device": "f0", "target": "target0", "sync": "none"})
            for number in range(4):
                vm.qemu_io(of_device("vd0"), f"aio_write {20 + 2 * number}M 4k")
            yield Stuck(vm, (f"qemu-nbd {server.process.pid}",), server.process.resume)


@contextmanager
def mirror_to_silence(build: lab.Build, *, added_later: bool) -> Iterator[tuple[Machine, DrillProcess, str]]:
    """A mirror whose target's server is stopped, there from the start or added while the VM runs; with its address."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "target")) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=f0,filename={lab.disk(place / 'd')}"),
            *(() if added_later else ("-blockdev", f"driver=nbd,node-name=target0,{server.server}")),
            *("-device", f"{NODE}=f0"),
        ) as vm,
    ):
        vm.qemu_io(of_device("vd0"), "write -P 3 0 32M")
        path = server.server.rpartition("=")[2]
        if added_later:
            address = {"type": "unix", "path": path}
            vm.qmp("blockdev-add", **{"driver": "nbd", "node-name": "target0", "server": address})
        with lab.stopped(server.process):
            vm.qmp("blockdev-mirror", **{"job-id": "job0", "device": "f0", "target": "target0", "sync": "full"})
            time.sleep(A_MOMENT)  # until it has filled its slots
            yield vm, server.process, path


@contextmanager
def mirror_stalled(build: lab.Build) -> Iterator[Stuck]:
    """A mirror whose target does not answer; the guest's disk itself is fine."""
    with mirror_to_silence(build, added_later=False) as (vm, server, _):
        yield Stuck(vm, (f"qemu-nbd {server.pid}", "job0"), server.resume)


@contextmanager
def quorum_child_stuck(build: lab.Build) -> Iterator[Stuck]:
    """One of two children of a quorum does not answer."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "child")) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-blockdev", "driver=quorum,node-name=top0,children.0=file0,children.1=nbd0,vote-threshold=1"),
            *("-device", f"{NODE}=top0"),
        ) as vm,
        lab.stopped(server.process),
    ):
        in_flight(vm, of_device("vd0"), 4)
        yield Stuck(vm, ("vd0", f"qemu-nbd {server.process.pid}"), server.process.resume)


@contextmanager
def savevm_on_frozen(build: lab.Build) -> Iterator[Stuck]:
    """`savevm` into an image on a frozen file system."""
    with lab.file_system() as mounted:
        image = mounted.mount / "d.qcow2"
        subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", image, "16M"], check=True)
        with (
            lab.qemu(build, "-drive", f"if=none,id=disk0,format=qcow2,file={image}", *DISK) as vm,
            lab.frozen(mounted),
        ):
            with suppress(TimeoutError):
                vm.hmp("savevm a", within=A_MOMENT)
            vm.process.wait_until("a thread was in D", lambda: "D" in states(vm.pid))
            yield Stuck(vm, ("disk0", str(mounted.mount)), mounted.thaw)


@contextmanager
def out_of_space(build: lab.Build) -> Iterator[Stuck]:
    """A guest whose disk is full, and a QEMU that pauses it for that."""
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "d", mebibytes=100)
        storage_full = mounted.mount / "fill"
        guests.write_boot_sector(image)
        with storage_full.open("wb") as stream, suppress(OSError):
            while True:
                stream.write(bytes(1 << 16))
                stream.flush()
        with lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,format=raw,file={image},werror=stop"),
            *DISK,
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            lab.until("QEMU paused", lambda: vm.qmp("query-status")["status"] == "io-error", seconds=BOOT_SECONDS)

            def lift() -> None:
                storage_full.unlink()
                vm.qmp("cont")

            yield Stuck(vm, ("vd0",), lift)
