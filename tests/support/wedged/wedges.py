"""Real QEMUs brought into a wedge, and set free again: one context manager each."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopsy.drill.machine import Machine
from autopsy.drill.process import DrillProcess, start, states, tool
from autopsy.drill.site import site
from support import lab
from support.wedged.small_guests import ENOUGH, WRITE_NOW_AND_THEN, boot_sector

A_MOMENT = 0.5  # what a monitor gets whose main loop is about to go under
BOOT_SECONDS = 60.0
DISK = ("-device", "virtio-blk-pci,id=vd0,drive=disk0")
NODE = "virtio-blk-pci,id=vd0,drive"

SPIN = bytes.fromhex("fa ebfe")  # cli; jmp to itself
TALK = bytes.fromhex("ba e900 b041 ee ebfd")  # out(0xe9, 'A') for ever
PANIC = bytes.fromhex("ba 0505 b001 ee f4")  # out(0x505, 1): what pvpanic takes for a panic; hlt
POWER_OFF = bytes.fromhex("ba 0406 b80020 ef f4")  # out(0x604, 0x2000): the PM1a control of a PC; hlt
RESET = bytes.fromhex("b0fe e664 ebfe")  # out(0x64, 0xfe): the keyboard controller's reset


@dataclass(frozen=True, slots=True)
class Stuck:
    """A VM as the wedge left it. `lift` takes the cause away; `names` are what the verdict must name."""

    vm: Machine
    names: tuple[str, ...] = ()
    lift: Callable[[], None] = lambda: None


def in_flight(
    vm: Machine, target: str, number: int = 8, command: str = "aio_write", *, size: str = "4k", within: float = 10.0
) -> None:
    """Put requests in flight, one a mebibyte; what takes the main loop with it is left to itself."""
    for place in range(number):
        with suppress(TimeoutError):
            vm.qemu_io(target, f"{command} {place}M {size}", within=within)


def completed(vm: Machine, device: str = "vd0") -> tuple[int, int]:
    """Return how many reads and writes a disk has completed."""
    for each in vm.qmp("query-blockstats"):
        if each.get("qdev", "").startswith(f"/machine/peripheral/{device}"):
            return int(each["stats"]["rd_operations"]), int(each["stats"]["wr_operations"])
    raise LookupError(device)


def until_it_works(vm: Machine, which: int, more_than: int = ENOUGH) -> None:
    """Wait until the guest's own requests flow: a firmware that still starts resets and drains the disks."""
    lab.until("the guest did its work", lambda: completed(vm)[which] > more_than, seconds=BOOT_SECONDS)


@contextmanager
def cgroup_frozen(build: lab.Build) -> Iterator[Stuck]:
    """The control group of the VM is frozen."""
    with lab.qemu(build) as vm, lab.frozen_cgroup(vm.pid) as group:

        def thaw() -> None:
            for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (group / file).exists():
                    (group / file).write_text(word)

        yield Stuck(vm, (group.name,), thaw)


@contextmanager
def running(
    build: lab.Build,
    code: bytes,
    more: tuple[str, ...] = (),
    *,
    ends_in: str = "",
    accelerate: tuple[str, ...] = lab.TO_BOOT,
) -> Iterator[Stuck]:
    """A guest of a few bytes on an IDE disk; waits for the run state that it `ends_in`."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d", mebibytes=1), code)
        with lab.qemu(
            build,
            *("-drive", f"if=ide,id=disk0,format=raw,file={image}"),
            *more,
            accelerate=accelerate,
            boots=True,
        ) as vm:
            if ends_in:
                lab.until(ends_in, lambda: vm.qmp("query-status")["status"] == ends_in, seconds=BOOT_SECONDS)
            else:
                lab.until("the guest's code was read", lambda: _read_from(vm), seconds=BOOT_SECONDS)
                time.sleep(1)  # from the read to the jump
            yield Stuck(vm)


def _read_from(vm: Machine) -> bool:
    try:
        return any(each["stats"]["rd_operations"] for each in vm.qmp("query-blockstats"))
    except TimeoutError:  # on a busy machine the guest runs before we ask, and may have taken the monitor with it
        return True


@contextmanager
def console_unread(build: lab.Build) -> Iterator[Stuck]:
    """A guest that talks to a debug console whose reader does not read: the vCPU sleeps with the BQL."""
    with lab.folder() as place, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "console"))
        listener.listen()
        with running(
            build,
            TALK,
            (
                *("-chardev", f"socket,id=console0,path={place}/console"),
                *("-device", "isa-debugcon,iobase=0xe9,chardev=console0"),
            ),
        ) as it:
            reader, _ = listener.accept()
            with reader:
                waiting = Path(f"/proc/{it.vm.pid}/task")
                lab.until(
                    "a vCPU waits for its reader",
                    lambda: any("nanosleep" in (each / "wchan").read_text() for each in waiting.iterdir()),
                    seconds=BOOT_SECONDS,
                )
                time.sleep(A_MOMENT)
                yield Stuck(it.vm, ("CPU 0",), reader.close)


@contextmanager
def behind_a_back_end(
    build: lab.Build, place: Path, blockdev: str, image: Path
) -> Iterator[tuple[Machine, DrillProcess]]:
    """A guest that writes for ever to a vhost-user-blk back end of one node, through which its writes reach `image`."""
    if not build.has_device("vhost-user-blk-pci"):
        pytest.skip("this QEMU was built without vhost-user-blk")
    with site() as there:
        path = place / "vhost"
        back_end = start(
            there,
            [
                *(tool("qemu-storage-daemon"), "--blockdev", f"{blockdev},node-name=node0"),
                "--export",
                f"type=vhost-user-blk,id=export0,node-name=node0,addr.type=unix,addr.path={path},writable=on",
            ],
            log="daemon.log",
        )
        back_end.wait_until("it listened", path.exists)
        with lab.qemu(
            build,
            *("-object", "memory-backend-memfd,id=ram0,size=64M,share=on", "-machine", "memory-backend=ram0"),
            *("-chardev", f"socket,id=vhost0,path={path}", "-device", "vhost-user-blk-pci,id=vd0,chardev=vhost0"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            began = image.stat().st_mtime_ns
            lab.until("its guest wrote", lambda: image.stat().st_mtime_ns > began, seconds=BOOT_SECONDS)
            yield vm, back_end


@contextmanager
def vhost_user(build: lab.Build, image: Path | None = None) -> Iterator[tuple[Machine, DrillProcess]]:
    """A guest that writes for ever to a vhost-user-blk back end."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(image or place / "d", mebibytes=32), WRITE_NOW_AND_THEN)
        with behind_a_back_end(build, place, f"driver=file,filename={image}", image) as both:
            yield both


@contextmanager
def back_end_stopped(build: lab.Build, *, stopping: bool) -> Iterator[Stuck]:
    """A vhost-user-blk back end under SIGSTOP: QEMU itself holds none of its requests."""
    with vhost_user(build) as (vm, back_end), lab.stopped(back_end):
        if stopping:
            with suppress(TimeoutError):
                vm.qmp("stop", within=A_MOMENT)
        yield Stuck(vm, (str(back_end.pid),), back_end.resume)


@contextmanager
def migration_unread(build: lab.Build) -> Iterator[Stuck]:
    """A migration whose destination accepted, and reads nothing."""
    with lab.folder() as place, socket.create_server(("127.0.0.1", 0)) as destination:
        destination.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        noise = place / "noise"
        noise.write_bytes(bytes(range(1, 251)) * 160_000)
        with lab.qemu(
            build, "-device", f"loader,file={noise},addr=0x400000,force-raw=on", memory=128, accelerate=lab.KVM
        ) as vm:
            vm.qmp("migrate-set-parameters", **{"max-bandwidth": 10**9})
            vm.qmp("migrate", uri=f"tcp:127.0.0.1:{destination.getsockname()[1]}")
            reader, _ = destination.accept()
            with reader:
                time.sleep(2 * A_MOMENT)
                assert vm.qmp("query-migrate")["status"] == "active"
                yield Stuck(vm, (f":{destination.getsockname()[1]}",), reader.close)


@contextmanager
def debugged(build: lab.Build) -> Iterator[Stuck]:
    """A gdb that is attached and waits for its user."""
    with lab.qemu(build) as vm:
        gdb = subprocess.Popen(
            [tool("gdb"), "-nx", "-q", "-p", str(vm.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            lab.until("every thread is traced", lambda: states(vm.pid) == {"t"})
            yield Stuck(vm, (str(gdb.pid),), lambda: _detach(gdb))
        finally:
            _detach(gdb)


def _detach(gdb: subprocess.Popen[bytes]) -> None:
    gdb.communicate()  # the end of its input


@contextmanager
def connecting(build: lab.Build) -> Iterator[Stuck]:
    """A character device is added whose server has no room for one more connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as crowd, lab.qemu(build) as vm:
        port = server.getsockname()[1]
        for _ in range(4):
            each = crowd.enter_context(closing(socket.socket()))
            each.setblocking(False)  # noqa: FBT003 - socket's own
            each.connect_ex(("127.0.0.1", port))
        time.sleep(A_MOMENT)
        address = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        with suppress(TimeoutError):
            vm.qmp("chardev-add", id="c0", backend=backend, within=A_MOMENT)
        yield Stuck(vm, (f"127.0.0.1:{port}",), server.close)


@contextmanager
def iscsi_silent(build: lab.Build) -> Iterator[Stuck]:
    """A disk is added whose iSCSI target does not say a word: libiscsi polls for it with the BQL held."""
    with socket.create_server(("127.0.0.1", 0)) as server, lab.qemu(build) as vm:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with suppress(TimeoutError):
            vm.qmp(
                "blockdev-add",
                **{
                    "driver": "iscsi",
                    "node-name": "i0",
                    "transport": "tcp",
                    "portal": where,
                    "target": "iqn.2001-04.x:t",
                },
                within=A_MOMENT,
            )
        yield Stuck(vm, (where,), server.close)


@contextmanager
def pipe_unread(build: lab.Build, *, opened: bool = True) -> Iterator[Stuck]:
    """Guest memory is saved to a pipe whose reader does not read, or which nobody has opened to read."""
    with lab.folder() as place, lab.qemu(build) as vm:
        path = place / "pipe"
        os.mkfifo(path)
        flags = os.O_RDONLY | os.O_NONBLOCK
        reader = os.open(path, flags) if opened else -1
        with suppress(TimeoutError):
            vm.qmp("pmemsave", val=0, size=1 << 20, filename=str(path), within=A_MOMENT)
        yield Stuck(vm, (str(path),), lambda: _drain(reader if opened else os.open(path, flags)))


def _drain(reader: int) -> None:
    """Read to the end, and close."""
    os.set_blocking(reader, True)
    with open(reader, "rb") as stream:
        while stream.read(1 << 16):
            pass
