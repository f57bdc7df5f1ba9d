"""Sets up the stored cases whose storage, or whoever serves it, does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fixtures_wedges import SOON, WRITES, node, virtio, write

from autopsy.drill.guests import write_boot_sector
from autopsy.drill.process import run, states
from support import lab


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
def mirror_target_silent(build: lab.Build) -> Iterator[lab.Machine]:
    """A mirror (blockdev-mirror, sync=full) of a disk that nobody uses to a qemu-nbd that is stopped."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "target.raw")) as server,
        lab.qemu(
            build,
            *node(f"driver=file,filename={lab.disk(place / 'd.raw')}"),
            *("-blockdev", f"driver=nbd,node-name=target0,{server.server}"),
        ) as machine,
    ):
        for number in range(8):
            machine.qemu_io(lab.of_device("vd0"), f"write {number}M 1M")
        with lab.stopped(server.process):
            machine.qmp(
                "blockdev-mirror", **{"job-id": "mirror0", "device": "node0", "target": "target0", "sync": "full"}
            )
            yield machine
