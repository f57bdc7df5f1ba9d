"""QEMUs whose trouble is behind something that looks well from here: a back end, a page of RAM, a listener, a loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopsy.drill.machine import of_device
from autopsy.drill.process import run
from autopsy.drill.site import site
from support import lab
from support.wedged.daemons import daemon
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import (
    A_MOMENT,
    BOOT_SECONDS,
    DISK,
    NODE,
    TALK,
    Stuck,
    behind_a_back_end,
    in_flight,
    running,
    until_it_works,
)

LISTENS = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen(); print(1, flush=True)"
READS = "import os; fd = os.open({path!r}, os.O_RDWR); print(1, flush=True)\nwhile os.read(fd, 65536): pass"


@contextmanager
def back_end_over_a_server(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A vhost-user-blk back end that runs, and whose own image lies at an NBD server that is stopped."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d", mebibytes=32), WRITE_NOW_AND_THEN)
        with (
            lab.nbd(image) as server,
            behind_a_back_end(build, place, f"driver=nbd,{server.server}", image) as (vm, _),
        ):
            if not stops:
                yield Stuck(vm)
                return
            with lab.stopped(server.process):
                time.sleep(2 * A_MOMENT)
                yield Stuck(vm, ("vd0",), server.process.resume)


@contextmanager
def ram_on_fuse(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """The guest's RAM is a file of a FUSE daemon that is stopped, and a `stop` waits for the vCPU that wants a page."""
    with lab.folder() as place, lab.fuse(lab.disk(place / "ram")) as export, lab.folder() as other:
        image = boot_sector(lab.disk(other / "d", mebibytes=32), WRITE_NOW_AND_THEN)
        with lab.qemu(
            build,
            *("-object", f"memory-backend-file,id=m0,size=64M,mem-path={export.file},share=off"),
            *("-machine", "memory-backend=m0", "-drive", f"if=none,id=disk0,format=raw,file={image}", *DISK),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            if not stops:
                time.sleep(2 * A_MOMENT)
                yield Stuck(vm)
                return
            with lab.stopped(export.process):
                lab.until("a vCPU waits for a page", lambda: lab.any_thread_in(vm.pid, "D"), seconds=BOOT_SECONDS)
                with suppress(TimeoutError):
                    vm.qmp("stop", within=A_MOMENT)
                yield Stuck(vm, (f" {export.process.pid}",), export.process.resume)


@contextmanager
def nobody_accepts(build: lab.Build) -> Iterator[Stuck]:
    """A disk is added from an NBD server that listens, runs, and accepts nobody."""
    with lab.folder() as place, lab.qemu(build) as vm:
        path = str(place / "nbd")
        code = LISTENS.format(path=path)
        with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(600)"], stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout
                server.stdout.readline()
                with suppress(TimeoutError):
                    node = {"driver": "nbd", "node-name": "n0", "server": {"type": "unix", "path": path}}
                    vm.qmp("blockdev-add", within=A_MOMENT, **node)
                yield Stuck(vm, (path, str(server.pid)))
            finally:
                os.kill(server.pid, signal.SIGKILL)


@contextmanager
def loop_device(build: lab.Build, *, freezes: bool = True) -> Iterator[Stuck]:
    """A disk is a loop device, whose file lies on a frozen file system: no thread of QEMU waits for that."""
    with lab.file_system() as mounted:
        device = run("losetup", "-f", "--show", lab.disk(mounted.mount / "d", mebibytes=16)).strip()
        try:
            node = f"driver=host_device,node-name=h0,filename={device},cache.direct=on,aio=native"
            with lab.qemu(build, "-blockdev", node, "-device", f"{NODE}=h0") as vm:
                if not freezes:
                    in_flight(vm, of_device("vd0"), 3)
                    yield Stuck(vm)
                    return
                with lab.frozen(mounted):
                    in_flight(vm, of_device("vd0"), 3, within=A_MOMENT)
                    yield Stuck(vm, ("vd0", Path(device).name, str(mounted.mount)), mounted.thaw)
        finally:
            run("losetup", "-d", device)


@contextmanager
def console_to_a_fifo(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A guest that talks to a debug console, a pair of FIFOs, whose reader is stopped."""
    with lab.folder() as place:
        for end in ("in", "out"):
            os.mkfifo(place / f"c.{end}")
        code = READS.format(path=str(place / "c.out"))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
            try:
                assert reader.stdout
                reader.stdout.readline()
                chardev = ("-chardev", f"pipe,id=console0,path={place}/c")
                with running(build, TALK, (*chardev, "-device", "isa-debugcon,iobase=0xe9,chardev=console0")) as it:
                    if stops:
                        os.kill(reader.pid, signal.SIGSTOP)
                        time.sleep(4 * A_MOMENT)
                    yield Stuck(it.vm, (str(reader.pid),) if stops else ())
            finally:
                os.kill(reader.pid, signal.SIGKILL)


@contextmanager
def server_over_a_server(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A disk at the export of a storage daemon that runs, and is a client of an NBD server that is stopped."""
    with lab.folder() as place, site() as there:
        image = boot_sector(lab.disk(place / "d", mebibytes=32), WRITE_NOW_AND_THEN)
        with lab.nbd(image) as far:
            near = daemon(there, build, "--blockdev", f"driver=nbd,node-name=node0,{far.server}", monitor=False)
            node = f"driver=nbd,node-name=n0,server.type=unix,server.path={there.folder}/nbd,export=disk"
            disk = ("-blockdev", node, "-device", f"{NODE}=n0")
            with lab.qemu(build, *disk, accelerate=lab.TO_BOOT, boots=True) as vm:
                until_it_works(vm, 1)
                if not stops:
                    yield Stuck(vm)
                    return
                with lab.stopped(far.process):
                    time.sleep(2 * A_MOMENT)
                    yield Stuck(vm, (f" {near.pid}", f" {far.process.pid}"), far.process.resume)
