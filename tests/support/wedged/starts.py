"""Real QEMUs that have not come to the start of their VM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.drill.machine import Machine
from autopsy.drill.process import run, start, states
from autopsy.drill.site import Site, site
from support import lab
from support.wedged.wedges import Stuck

INCOMPATIBLE_FEATURES = 72  # in a qcow2 header; the last of its 8 bytes has bit 0: the refcounts are not up to date


@contextmanager
def awaits_client(build: lab.Build, wait: str = "on") -> Iterator[Machine]:
    """A QEMU whose serial port waits for its first client, so that the VM has not started."""
    with site() as there:
        port, monitor = (there.folder / name for name in ("serial.sock", "qmp.sock"))
        process = start(
            there,
            [build.binary, *build.firmware_arguments, "-name", "waits", "-no-user-config", "-nodefaults",
             *("-display", "none", "-machine", "none", "-monitor", "none"),
             *("-chardev", f"socket,id=port,path={port},server=on,wait={wait}", "-serial", "chardev:port"),
             *("-qmp", f"unix:{monitor},server=on,wait={wait}")],
            log="qemu.log",
        )  # fmt: skip
        process.wait_until("it listens", (port if wait == "on" else monitor).exists)
        yield Machine(process, monitor, monitor)


def starting(there: Site, build: lab.Build, *disk: str) -> Machine:
    """Start a QEMU that opens a disk before it does anything else, and do not wait for it."""
    monitor = there.folder / "qmp.sock"
    process = start(
        there,
        [*build.command, *build.firmware_arguments, "-name", "starts", "-no-user-config", "-nodefaults",
         *("-display", "none", "-accel", "tcg", "-m", "32", "-S"),
         *("-qmp", f"unix:{monitor},server=on,wait=off"),
         *disk, "-device", "virtio-blk-pci,drive=node0"],
        log="qemu.log",
    )  # fmt: skip
    process.wait_until("it listens", monitor.exists)
    return Machine(process, monitor, monitor)


def unclean(image: Path) -> Path:
    """Make a qcow2 image that whoever opens it has to repair, and so to write to."""
    run("qemu-img", "create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "16M")
    with image.open("r+b") as stream:
        stream.seek(INCOMPATIBLE_FEATURES + 7)
        stream.write(b"\x01")
    return image


def _prelaunch(vm: Machine) -> bool:
    """Tell whether it has started as far as it was asked to; until it listens, its socket refuses."""
    try:
        return bool(vm.qmp("query-status")["status"] == "prelaunch")
    except ConnectionError:
        return False


@contextmanager
def on_frozen(build: lab.Build, *, freezes: bool = True) -> Iterator[Stuck]:
    """A QEMU that has to write to its image while it opens it, and the file system is frozen; or is not."""
    with lab.file_system() as mounted, site() as there:
        image = unclean(mounted.mount / "d.qcow2")
        words = ("-blockdev", f"driver=qcow2,node-name=node0,file.driver=file,file.filename={image}")
        if not freezes:
            vm = starting(there, build, *words)
            lab.until("its monitor answered", lambda: _prelaunch(vm))
            yield Stuck(vm)
            return
        with lab.frozen(mounted):
            vm = starting(there, build, *words)
            lab.until("a thread sleeps for good", lambda: "D" in states(vm.pid))
            yield Stuck(vm, (str(mounted.mount),), mounted.thaw)


@contextmanager
def on_fuse(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A QEMU whose image is a file of a FUSE daemon, which is stopped before it starts; or is not."""
    with lab.folder() as place, lab.fuse(lab.disk(place / "d")) as export, site() as there:
        words = ("-blockdev", f"driver=file,node-name=node0,filename={export.file}")
        if not stops:
            vm = starting(there, build, *words)
            lab.until("its monitor answered", lambda: _prelaunch(vm))
            yield Stuck(vm)
            return
        with lab.stopped(export.process):
            vm = starting(there, build, *words)
            lab.until("it waits for the daemon", lambda: lab.waits_in(vm.pid, "request_wait_answer"))
            yield Stuck(vm, (str(export.process.pid),), export.process.resume)


@contextmanager
def on_nbd(build: lab.Build) -> Iterator[Stuck]:
    """A QEMU whose NBD server is stopped before it starts."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d")) as server,
        site() as there,
        lab.stopped(server.process),
    ):
        vm = starting(there, build, "-blockdev", f"driver=nbd,node-name=node0,{server.server}")
        lab.until("it is connected", lambda: _connected(vm.pid))
        yield Stuck(vm, (server.server.rpartition("=")[2],), server.process.resume)


def _connected(pid: int) -> bool:
    """Tell whether a socket is open beside the monitor's own."""
    return sum(str(each.readlink()).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir()) > 1
