"""QEMUs of which only a part stands: one request of a disk whose others flow, one file of a disk that has several."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.drill.process import tool
from autopsy.drill.site import site
from support import lab
from support.wedged.small_guests import READ_NOW_AND_THEN, boot_sector
from support.wedged.wedges import A_MOMENT, DISK, NODE, Stuck, in_flight, until_it_works
from support.wedged.wedges_beyond import served_by_a_daemon


@contextmanager
def forgotten(build: lab.Build, *, forgets: bool = True) -> Iterator[Stuck]:
    """An NBD server that answers what its own image holds, and never what it would have to fetch from below."""
    with lab.folder() as place, site() as there:
        raw = boot_sector(lab.disk(place / "raw"), READ_NOW_AND_THEN)
        with raw.open("r+b") as stream:
            stream.seek(512)
            stream.write(b"x" * (16 << 20))
        image = place / "top.qcow2"
        subprocess.run([tool("qemu-img"), "convert", "-O", "qcow2", raw, image], check=True)
        client = served_by_a_daemon(
            there,
            place,
            "top0",
            *("--object", "throttle-group,id=group0,x-bps-total=1"),
            *("--blockdev", "driver=null-co,node-name=null0,size=67108864"),
            *("--blockdev", "driver=throttle,node-name=below0,throttle-group=group0,file=null0"),
            *("--blockdev", f"driver=file,node-name=file0,filename={image}"),
            *("--blockdev", "driver=qcow2,node-name=top0,file=file0,backing=below0"),
        )
        with lab.qemu(build, *client, boots=True) as vm:
            until_it_works(vm, 0)
            if forgets:
                for megabyte in (40, 41):  # the limit lets the first of them through
                    vm.qemu_io(lab.of_device("vd0"), f"aio_read {megabyte}M 64k")
            time.sleep(2 * A_MOMENT)
            yield Stuck(vm, ("vd0", f"{place}/nbd"))


@contextmanager
def data_file(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A qcow2 disk whose metadata is at hand, and whose data file lies at an NBD server that is stopped."""
    with lab.folder() as place, lab.nbd(lab.disk(place / "data")) as server:
        image = place / "image.qcow2"
        options = f"data_file={place}/elsewhere,data_file_raw=on"
        subprocess.run([tool("qemu-img"), "create", "-q", "-f", "qcow2", "-o", options, image, "64M"], check=True)
        with lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={image}"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-blockdev", "driver=qcow2,node-name=top0,file=file0,data-file=nbd0", "-device", f"{NODE}=top0"),
        ) as vm:
            if not stops:
                in_flight(vm, lab.of_device("vd0"), 4)
                yield Stuck(vm)
                return
            with lab.stopped(server.process):
                in_flight(vm, lab.of_device("vd0"), 4)
                yield Stuck(vm, ("vd0", f"qemu-nbd {server.process.pid}"), server.process.resume)


@contextmanager
def extent(build: lab.Build, *, freezes: bool = True) -> Iterator[Stuck]:
    """A VMDK disk of two files, the second of which lies on a frozen file system."""
    with lab.folder() as place, lab.file_system() as mounted:
        image = place / "image.vmdk"
        create = [tool("qemu-img"), "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"]
        subprocess.run([*create, image, "3G"], check=True)
        second = sorted(place.glob("image-*"))[1]
        second.unlink()
        second.symlink_to(lab.disk(mounted.mount / "extent", mebibytes=32))
        other = f"if=none,id=disk1,format=raw,file={lab.disk(place / 'other')}"
        with lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,format=vmdk,file={image}", *DISK),
            *("-drive", other, "-device", "virtio-blk-pci,id=vd1,drive=disk1"),
        ) as vm:
            if not freezes:
                vm.qemu_io("disk0", "aio_write 2049M 4k")
                yield Stuck(vm)
                return
            with lab.frozen(mounted):
                for megabyte in range(2049, 2052):
                    vm.qemu_io("disk0", f"aio_write {megabyte}M 4k")
                yield Stuck(vm, (str(mounted.mount),), mounted.thaw)
