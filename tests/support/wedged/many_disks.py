"""One VM with every kind of disk and of storage below it, whose guest writes to each disk in turn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopsy.drill.machine import Machine
from autopsy.drill.process import start, tool
from autopsy.drill.site import Site, site
from support import lab
from support.wedged.small_guests import boot_sector

BOOT_SECONDS, ROUND_SECONDS = 60.0, 20.0
VHOST = "vhost-user-blk"

# A sector to each disk that the BIOS knows, then the next sector, round and round; a dot after each round.
WRITE_TO_EVERY_DISK = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # cli; ax, ds, es, ss = 0; sp = 0x7c00; sti
    "c606587c80"  # round: drive = 80h, the first disk
    "be5c7c 8a16587c b80043 cd13"  # again: si = packet; dl = drive; ah = 43h, extended write; int 13h
    "7230"  # jc failed
    "fe06587c"  # next: drive += 1
    "a07504 0c80 3806587c 72e3"  # below 80h + the BIOS's number of disks: jb again
    "66ff06647c"  # packet.sector += 1
    "66813e647c00700000 7209"  # below 28672: jb not_yet
    "66c706647c40000000"  # packet.sector = 64
    "b02e baf803 ee ebbd"  # not_yet: out(0x3f8, '.'); jmp round
    "b045 baf803 ee ebc8"  # failed: out(0x3f8, 'E'); jmp next
    "80 8d7400"  # the drive; the packet is aligned to 4:
    "10 00 0100 0000 0010 4000000000000000"  # 16 bytes; 1 sector; from 1000:0000; to sector 64
)

# Each disk's id, and the words that make its controller and the disk itself; "{}" is the storage.
DISKS = {
    "virtioblk": ("virtio-blk-pci,id=virtioblk,iothread=io0,bootindex=1,drive={}",),
    "virtioscsi": ("virtio-scsi-pci,id=vs0", "scsi-hd,id=virtioscsi,bus=vs0.0,drive={}"),
    "ide": ("ide-hd,id=ide,bus=ide.0,drive={}",),
    "ahci": ("ich9-ahci,id=ahci0", "ide-hd,id=ahci,bus=ahci0.0,drive={}"),
    "nvme": ("nvme,id=nvme,serial=nvme,drive={}",),
    "lsi": ("lsi53c895a,id=lsi0", "scsi-hd,id=lsi,bus=lsi0.0,drive={}"),
    "megasas": ("megasas,id=mega0", "scsi-hd,id=megasas,bus=mega0.0,drive={}"),
    "usb": ("qemu-xhci,id=xhci0", "usb-storage,id=usb,bus=xhci0.0,drive={}"),
}
NO_DISKS = (
    *("-device", "virtio-serial-pci,id=serial0", "-chardev", "null,id=nobody"),
    *("-device", "virtserialport,id=port0,chardev=nobody,name=port0"),
    *("-device", "virtio-rng-pci,id=rng0"),
    *("-device", "virtio-balloon-pci,id=balloon0"),
)


@dataclass(frozen=True, slots=True)
class Busy:
    """The VM. `vhost` is the image of its vhost-user disk, None where this QEMU has no such device."""

    vm: Machine
    serial: Path
    vhost: Path | None

    def written(self) -> dict[str, int]:
        """Return how far each disk has come: writes that QEMU completed, of vhost-user the image's time."""
        rows = [each for each in self.vm.qmp("query-blockstats") if "qdev" in each]
        found = {
            name: int(each["stats"]["wr_operations"])
            for each in rows
            for name in DISKS
            if name in each["qdev"].split("/")
        }
        assert found.keys() == DISKS.keys()
        return found if self.vhost is None else {**found, VHOST: self.vhost.stat().st_mtime_ns}

    def state(self) -> object:
        """Return what no question may change."""
        told = {each: self.vm.qmp(each) for each in ("query-status", "query-block-exports", "query-chardev")}
        jobs = [(each["id"], each["type"], each["status"]) for each in self.vm.qmp("query-jobs")]
        return told, jobs, [(each["qdev"], each.get("io-status")) for each in self.vm.qmp("query-block")]

    def errors(self) -> int:
        """Return how many writes the guest saw fail."""
        return self.serial.read_bytes().count(b"E")

    def goes_on(self) -> bool:
        """Return whether every disk moves, within a time that is far beyond what one round takes."""
        before, deadline = self.written(), time.monotonic() + ROUND_SECONDS
        while time.monotonic() < deadline:
            if all(now > before[name] for name, now in self.written().items()):
                return True
            time.sleep(0.05)
        return False


@contextmanager
def busy(build: lab.Build) -> Iterator[Busy]:
    """Start the VM, and let its guest reach every disk; a mirror runs, and an export has a client."""
    with lab.folder() as place, site() as there:
        vhost = boot_sector(lab.disk(place / VHOST), WRITE_TO_EVERY_DISK) if build.has_device(f"{VHOST}-pci") else None
        serial = place / "serial"
        disks = [word for name, devices in DISKS.items() for each in devices for word in ("-device", each.format(name))]
        with (
            lab.nbd(lab.disk(place / "nvme")) as server,
            lab.qemu(
                build,
                *("-object", "memory-backend-memfd,id=ram0,size=64M,share=on", "-machine", "pc,memory-backend=ram0"),
                *("-object", "iothread,id=io0", "-object", "throttle-group,id=group0,x-iops-total=5000"),
                *storage(place, server.server),
                *disks,
                *NO_DISKS,
                *(_served(build, there, vhost) if vhost else ()),
                *("-serial", f"file:{serial}"),
                accelerate=lab.TO_BOOT,
                boots=True,
            ) as vm,
        ):
            running = Busy(vm, serial, vhost)
            mirror_and_export(build, there, vm, place)
            vm.process.wait_until(
                "its guest wrote to every disk", lambda: all(running.written().values()), seconds=BOOT_SECONDS
            )
            yield running


def storage(place: Path, nbd: str) -> Iterator[str]:
    """Yield the words for what is below the disks, as different as can be: each is called after its disk."""
    file = "driver=file,node-name={}-file,filename={}"
    for name in DISKS:
        if name != "nvme":
            lab.disk(place / name)
    boot_sector(place / "virtioblk", WRITE_TO_EVERY_DISK)
    subprocess.run(
        [tool("qemu-img"), "create", "-q", "-f", "qcow2", "-b", place / "ahci", "-F", "raw", place / "ahci.qcow2"],
        check=True,
    )
    yield from ("-blockdev", f"driver=file,node-name=virtioblk,filename={place}/virtioblk")
    yield from ("-blockdev", file.format("virtioscsi", place / "virtioscsi"))
    yield from ("-blockdev", "driver=throttle,node-name=virtioscsi,file=virtioscsi-file,throttle-group=group0")
    yield from ("-drive", f"if=none,id=ide,format=raw,file={place}/ide,throttling.iops-total=5000")
    yield from ("-blockdev", file.format("base", place / "ahci"))
    yield from ("-blockdev", "driver=raw,node-name=base,file=base-file,read-only=on")
    yield from ("-blockdev", file.format("ahci", place / "ahci.qcow2"))
    yield from ("-blockdev", "driver=qcow2,node-name=ahci,file=ahci-file,backing=base")
    yield from ("-blockdev", f"driver=nbd,node-name=nvme,{nbd}")
    yield from ("-blockdev", file.format("lsi", place / "lsi"))
    yield from ("-blockdev", "driver=raw,node-name=lsi,file=lsi-file")
    yield from ("-blockdev", f"driver=file,node-name=megasas,filename={place}/megasas")
    yield from ("-drive", f"if=none,id=usb,format=raw,file={place}/usb,copy-on-read=off")
    yield from ("-blockdev", file.format("mirrored", lab.disk(place / "mirrored")))


def _served(build: lab.Build, there: Site, image: Path) -> tuple[str, ...]:
    """Run a real back end, and return the words for its disk."""
    path = image.with_suffix(".sock")
    back_end = start(
        there,
        [
            *(*build.tool("qemu-storage-daemon"), "--blockdev", f"driver=file,node-name=file0,filename={image}"),
            "--export",
            f"type=vhost-user-blk,id=export0,node-name=file0,addr.type=unix,addr.path={path},writable=on",
        ],
        log="back-end.log",
    )
    back_end.wait_until("it listened", path.exists)
    return ("-chardev", f"socket,id=vhost0,path={path}", "-device", f"{VHOST}-pci,id=vhost,chardev=vhost0")


def mirror_and_export(build: lab.Build, there: Site, vm: Machine, place: Path) -> None:
    """Let a mirror copy whatever is written, and a client hold an export."""
    vm.qmp(
        "blockdev-mirror",
        **{"job-id": "mirror0", "device": "lsi", "target": "mirrored-file", "sync": "full"},
    )
    vm.process.wait_until("the mirror had caught up", lambda: vm.qmp("query-jobs")[0]["status"] == "ready")
    vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": f"{place}/export"}})
    vm.qmp("block-export-add", **{"type": "nbd", "id": "export0", "node-name": "megasas", "name": "megasas"})
    uri = f"nbd+unix:///megasas?socket={place}/export"
    client = start(
        there,
        [*build.tool("qemu-io"), "-r", "-f", "raw", uri, "-c", "read 0 512", "-c", "sleep 600000"],
        log="client.log",
    )
    client.wait_until("it was let in", lambda: _clients(place / "export") > 0)


def _clients(path: Path) -> int:
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(row[5] == "03" and row[7:] == [str(path)] for row in rows)
