"""Sets up the stored cases that need a guest with a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support import lab

SLOWLY = 4_000_000
NO_LIMITS = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


@contextmanager
def throttle_deadlock(build: lab.Build) -> Iterator[lab.Machine]:
    """A virtio-blk disk whose four queues have an iothread each (iothread-vq-mapping, aio=native) is written to by a
    Linux guest (8 jobs, depth 16, 4 KiB); then `block_set_io_throttle` sets bps_wr to 40 MB/s. Within seconds an
    iothread waits for the throttle group's lock that it holds itself."""
    with lab.throttle_deadlock(build) as machine:
        seen: list[list[int]] = []

        def for_good() -> bool:
            """Tell a deadlock from a thread that took its lock between our two reads."""
            seen.append(lab.self_deadlocked(machine.pid))
            return bool(seen[-1]) and seen[-100:].count(seen[-1]) == 100

        lab.until("a thread waits for its own mutex for good", for_good, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def lsi_throttle(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest writes to a disk behind the legacy LSI controller, with no iothread and a limit of 60 MB/s, as a
    Proxmox VM might have it; then a live `block_set_io_throttle` to 1 byte/s. QMP answers, blockstats stand still."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=drive-scsi0,file={lab.disk(place / 'd.raw')},format=raw,cache=none,aio=io_uring"),
            *("-device", "lsi53c895a,id=scsihw0", "-device", "scsi-hd,bus=scsihw0.0,drive=drive-scsi0,id=scsi0"),
            load="2,4,4096,w,rand,100000",
            device="/dev/sda",
            name="devvm",
        ) as machine,
    ):
        lab.until("the guest has written", lambda: _done(machine, "drive-scsi0") > 200, seconds=lab.GUEST_SECONDS)
        machine.qmp("block_set_io_throttle", device="drive-scsi0", **{**NO_LIMITS, "bps": 60_000_000})
        machine.qmp("block_set_io_throttle", device="drive-scsi0", **{**NO_LIMITS, "bps": 1})
        _stands_still(machine, "drive-scsi0")
        yield machine


@contextmanager
def throttled_going_on(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest writes 4 KiB at a time, as fast as it may: 20 a second (throttling.iops-total). Requests are always
    parked in the throttle group, never for long."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw,throttling.iops-total=20"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
            load="2,4,4096,w,rand,100000",
        ) as machine,
    ):
        lab.until("the guest has written", lambda: _done(machine, "disk0") > 40, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def throttled_one_iothread(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest writes to a virtio-blk disk with one iothread (4 jobs, depth 8, 64 KiB); then
    `block_set_io_throttle` sets bps_wr to 4 MB/s, as for the deadlock of several iothreads. It goes on."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-object", "iothread,id=iothread1"),
            *(
                "-blockdev",
                f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=f0,aio=native,cache.direct=on",
            ),
            *("-device", "virtio-blk-pci,num-queues=2,iothread=iothread1,id=vd0,drive=f0", "-smp", "2"),
            load="4,8,65536,w,rand,100000",
        ) as machine,
    ):
        lab.until("the guest has written", lambda: lab.writes_done(machine, "vd0") > 2000, seconds=lab.GUEST_SECONDS)
        machine.qmp(
            "block_set_io_throttle", id="/machine/peripheral/vd0/virtio-backend", **{**NO_LIMITS, "bps_wr": SLOWLY}
        )
        now = lab.writes_done(machine, "vd0")
        lab.until("it goes on", lambda: lab.writes_done(machine, "vd0") > now + 100, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def throttled_writes(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest reads as fast as it can from a disk whose writes are limited to one byte a second
    (throttling.bps-write=1); four writes wait, the reads flow."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw,throttling.bps-write=1"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
            load="1,2,4096,r,rand,100000",
        ) as machine,
    ):
        for number in range(4):
            machine.qemu_io("disk0", f"aio_write {number}M 64k")
        lab.until("the guest has read", lambda: _done(machine, "disk0", "rd") > 200, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def backup_holds_writes(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest reads as fast as it can; a backup (blockdev-backup, sync=none) to a qemu-nbd that is stopped holds
    four writes, each until the old data has been copied."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "target.raw")) as server,
        lab.guest(
            build,
            *("-blockdev", f"driver=file,filename={lab.disk(place / 'd.raw')},node-name=node0"),
            *("-device", "virtio-blk-pci,id=vd0,drive=node0"),
            *("-blockdev", f"driver=nbd,node-name=target0,{server.server}"),
            load="1,2,4096,r,rand,100000",
        ) as machine,
    ):
        machine.qmp("blockdev-backup", **{"job-id": "backup0", "device": "node0", "target": "target0", "sync": "none"})
        with lab.stopped(server.process):
            for number in range(4):
                machine.qemu_io(lab.of_device("vd0"), f"aio_write {number}M 64k")
            yield machine


@contextmanager
def healthy_busy(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest writes as fast as it can to a virtio-blk disk with an iothread; another disk has nothing to do."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-object", "iothread,id=iothread1"),
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw,cache=none,aio=native"),
            *("-device", "virtio-blk-pci,iothread=iothread1,id=vd0,drive=disk0"),
            *("-drive", f"if=none,id=disk1,file={lab.disk(place / 'e.raw')},format=raw"),
            *("-device", "virtio-blk-pci,id=vd1,drive=disk1"),
            load="1,2,4096,w,rand,100000",
        ) as machine,
    ):
        lab.until("the guest has written", lambda: _done(machine, "disk0") > 200, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def vcpu_burns(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest burns one of its two vCPUs in an endless loop and writes to its disk meanwhile."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0", "-smp", "2"),
            load="1,1,4096,w,rand,100000 lab.spin=1",
        ) as machine,
    ):
        lab.until("the guest spins", lambda: "LAB-SPIN" in lab.console(machine), seconds=lab.GUEST_SECONDS)
        lab.until("the guest has written", lambda: _done(machine, "disk0") > 20, seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def guest_spins(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest burns its one vCPU in an endless loop and asks its disk for nothing."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
            load="1,1,4096,w,rand,1 lab.spin=3",
        ) as machine,
    ):
        lab.until("the guest spins", lambda: "LAB-SPIN" in lab.console(machine), seconds=lab.GUEST_SECONDS)
        yield machine


@contextmanager
def guest_panicked(build: lab.Build) -> Iterator[lab.Machine]:
    """A Linux guest with pvpanic crashes (sysrq c); QEMU pauses it (-action panic=pause)."""
    with (
        lab.folder() as place,
        lab.guest(
            build,
            *("-drive", f"if=none,id=disk0,file={lab.disk(place / 'd.raw')},format=raw"),
            *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
            *("-device", "pvpanic-pci", "-action", "panic=pause"),
            load="1,1,4096,w,rand,1 lab.panic=1",
        ) as machine,
    ):
        lab.until(
            "QEMU knows of the panic",
            lambda: machine.qmp("query-status")["status"] == "guest-panicked",
            seconds=lab.GUEST_SECONDS,
        )
        yield machine


def _done(machine: lab.Machine, backend: str, kind: str = "wr") -> int:
    """Return how many writes, or reads, a -drive has completed."""
    stats = machine.qmp("query-blockstats")
    return sum(int(each["stats"][f"{kind}_operations"]) for each in stats if each.get("device") == backend)


def _stands_still(machine: lab.Machine, backend: str) -> None:
    before: list[int] = []

    def still() -> bool:
        before.append(_done(machine, backend))
        return before[-20:].count(before[-1]) == 20

    lab.until("nothing completes any more", still, seconds=lab.GUEST_SECONDS)
