"""QEMUs whose trouble lies beyond them, or between two states; and healthy ones that look like those."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from autopsy.drill.machine import Machine, of_device
from autopsy.drill.process import start, states, tool
from autopsy.drill.site import Site, site
from support import lab
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import A_MOMENT, BOOT_SECONDS, DISK, NODE, Stuck, completed, in_flight, vhost_user


@contextmanager
def pulled_backup(build: lab.Build) -> Iterator[Stuck]:
    """QEMU's own NBD server exports the guest's disk to a backup program that is connected, and asks for nothing."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={lab.disk(place / 'd')}"),
            *("-device", f"{NODE}=file0"),
        ) as vm,
    ):
        vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": f"{place}/nbd"}})
        export = {"type": "nbd", "id": "export0", "node-name": "file0", "name": "disk"}
        vm.qmp("block-export-add", **export)
        with subprocess.Popen(
            [tool("qemu-io"), "-f", "raw", "-r", f"nbd+unix:///disk?socket={place}/nbd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client:
            assert client.stdin
            assert client.stdout
            client.stdin.write(b"read 0 4k\n")
            client.stdin.flush()
            client.stdout.readline()  # it was answered: the connection is up
            yield Stuck(vm)
            client.stdin.close()


@contextmanager
def back_end_killed(build: lab.Build) -> Iterator[Stuck]:
    """A vhost-user-blk back end that was killed: nothing answers the guest any more."""
    with vhost_user(build) as (vm, back_end):
        back_end.end()
        lab.until("QEMU noticed", lambda: _disconnected(vm))
        yield Stuck(vm, ("vd0",))


def _disconnected(vm: Machine) -> bool:
    return any(each["filename"].startswith("disconnected:") for each in vm.qmp("query-chardev"))


@contextmanager
def back_end_serving(build: lab.Build) -> Iterator[Stuck]:
    """A vhost-user-blk back end that does its work."""
    with vhost_user(build) as (vm, _):
        yield Stuck(vm)


@contextmanager
def failing_at_once(build: lab.Build, *, flows: bool = False) -> Iterator[Stuck]:
    """Writes to an NBD server that was killed, without reconnect-delay: each fails at once. Else it `flows`."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d")) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", f"{NODE}=nbd0"),
        ) as vm,
    ):
        if not flows:
            server.process.end()
        with asking(lambda: vm.qemu_io(of_device("vd0"), "aio_write 0 4k")):
            lab.until("requests ended", lambda: (completed(vm)[1] if flows else failed(vm)) > 2)
            yield Stuck(vm, () if flows else ("vd0",))


@contextmanager
def asking(question: Callable[[], object]) -> Iterator[None]:
    """Put a question over and over while the block runs."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            with suppress(OSError):
                question()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def failed(vm: Machine) -> int:
    """Return how many writes have failed."""
    return sum(int(each["stats"]["failed_wr_operations"]) for each in vm.qmp("query-blockstats"))


@contextmanager
def stopped_with_one_in_the_kernel(build: lab.Build) -> Iterator[Stuck]:
    """SIGSTOP while a worker sleeps in the kernel, where a stop does not reach it."""
    with (
        lab.file_system() as mounted,
        lab.qemu(
            build,
            *("-drive", f"if=none,id=disk0,format=raw,file={lab.disk(mounted.mount / 'd')},aio=threads"),
            *DISK,
        ) as vm,
        lab.frozen(mounted),
    ):
        in_flight(vm, "disk0", 1)
        lab.until("a worker waits for the thaw", lambda: lab.any_thread_in(vm.pid, "D"))
        os.kill(vm.pid, signal.SIGSTOP)
        lab.until("the others are stopped", lambda: states(vm.pid) == {"T", "D"})
        try:
            yield Stuck(vm, (f"process {vm.pid}",))
        finally:
            os.kill(vm.pid, signal.SIGCONT)


@contextmanager
def waiting_before_switchover(build: lab.Build) -> Iterator[Stuck]:
    """A migration that waits for its manager's word before it hands over, which does not come."""
    with lab.folder() as place, lab.qemu(build, "-incoming", "defer", name="there") as there, lab.qemu(build) as vm:
        there.qmp("migrate-incoming", uri=f"unix:{place}/migration")
        pause = [{"capability": "pause-before-switchover", "state": True}]
        vm.qmp("migrate-set-capabilities", capabilities=pause)
        vm.qmp("migrate", uri=f"unix:{place}/migration")
        lab.until("it waits", lambda: vm.qmp("query-migrate")["status"] == "pre-switchover")
        yield Stuck(vm)


def served_by_a_daemon(there: Site, place: Path, node: str, *words: str) -> tuple[str, ...]:
    """Export a node that the words make by NBD, and return the disk of whoever is its client."""
    listens = (*("--nbd-server", f"addr.type=unix,addr.path={place}/nbd"), *words)
    export = ("--export", f"type=nbd,id=export0,node-name={node},name=,writable=on")
    server = start(there, [tool("qemu-storage-daemon"), *listens, *export], log="server.log")
    server.wait_until("it listened", (place / "nbd").exists)
    return (
        *("-blockdev", f"driver=nbd,node-name=nbd0,server.type=unix,server.path={place}/nbd"),
        *("-device", f"{NODE}=nbd0,cyls=100,heads=16,secs=63"),
    )


@contextmanager
def slow_server(build: lab.Build, requests: int = 40) -> Iterator[Stuck]:
    """An NBD server that answers one request a second, and has many to answer."""
    with lab.folder() as place, site() as there:
        client = served_by_a_daemon(
            there,
            place,
            "n0",
            *("--object", "throttle-group,id=group0,x-iops-total=1"),
            *("--blockdev", "driver=null-co,node-name=null0,size=67108864,read-zeroes=on"),
            *("--blockdev", "driver=throttle,node-name=n0,throttle-group=group0,file=null0"),
        )
        with lab.qemu(build, *client) as vm:
            in_flight(vm, of_device("vd0"), requests)
            lab.until("some were answered", lambda: completed(vm)[1] > 2)
            yield Stuck(vm, ("vd0",))


@contextmanager
def one_a_second(build: lab.Build, requests: int) -> Iterator[lab.Machine]:
    """Writes at a disk's own limit of one a second."""
    with lab.folder() as place:
        limited = f"if=none,id=disk0,format=raw,file={lab.disk(place / 'd')},throttling.iops-total=1"
        with lab.qemu(build, "-drive", limited, *DISK) as vm:
            in_flight(vm, "disk0", requests)
            yield vm


@contextmanager
def at_its_limit(build: lab.Build, requests: int = 40) -> Iterator[Stuck]:
    """Writes queued at a disk's own limit of one a second."""
    with one_a_second(build, requests) as vm:
        lab.until("some were done", lambda: completed(vm)[1] > 2)
        yield Stuck(vm, ("vd0",))


@contextmanager
def after_a_drain_at_its_limit(build: lab.Build, requests: int = 20) -> Iterator[Stuck]:
    """A single write that makes up, for as many seconds, for all that a drain has let through a limit of one a second.

    A reset of the guest drains, too: so does each firmware that starts.
    """
    with one_a_second(build, requests) as vm:
        vm.qmp("stop")
        vm.qmp("cont")
        in_flight(vm, "disk0", 1)
        yield Stuck(vm, ("vd0",))


@contextmanager
def frozen_behind_links(build: lab.Build) -> Iterator[Stuck]:
    """Three disks named by symbolic links, as LVM names its volumes; the second lies on a frozen file system."""
    with lab.file_system() as mounted, lab.folder() as place:
        words = []
        for number in range(3):
            image = lab.disk((mounted.mount if number == 1 else place) / f"image{number}", mebibytes=16)
            link = place / f"vm-102-disk-{number}"
            link.symlink_to(image)
            words += ["-drive", f"if=none,id=disk{number},format=raw,file={link},aio=threads"]
            words += ["-device", f"virtio-blk-pci,id=vd{number},drive=disk{number}"]
        with lab.qemu(build, *words) as vm, lab.frozen(mounted):
            in_flight(vm, "disk1", 4, within=A_MOMENT)
            yield Stuck(vm, ("vd1", str(mounted.mount)), mounted.thaw)


@contextmanager
def unmonitored(build: lab.Build) -> Iterator[Stuck]:
    """A guest that writes, in a QEMU that has no monitor; only inside of KVM is it seen to run."""
    with lab.folder() as place, site() as there:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        process = start(
            there,
            [
                *(build.binary, *build.firmware_arguments, "-nodefaults", "-display", "none", *lab.KVM, "-m", "64"),
                *("-blockdev", f"driver=file,node-name=file0,filename={image}", "-device", f"{NODE}=file0"),
                *("-name", "guest=t,debug-threads=on", "-serial", f"file:{place}/dots"),
            ],
            log="qemu.log",
        )
        dots = place / "dots"
        process.wait_until("it wrote", lambda: dots.exists() and "." in dots.read_text(), seconds=BOOT_SECONDS)
        yield Stuck(Machine(process, place / "none", place / "none"))


@contextmanager
def migration_to_a_stopped_program(build: lab.Build) -> Iterator[Stuck]:
    """A migration to the standard input of a program that is stopped."""
    with lab.folder() as place, ExitStack() as last, lab.qemu(build, memory=128, accelerate=lab.KVM) as vm:
        noise = place / "pid"
        with suppress(TimeoutError):
            vm.qmp("migrate", uri=f"exec:echo $$ > {noise}; kill -STOP $$; cat > /dev/null", within=A_MOMENT)
        lab.until("its reader was stopped", lambda: noise.exists() and states(int(noise.read_text())) == {"T"})
        reader = int(noise.read_text())
        last.callback(os.kill, reader, signal.SIGCONT)
        time.sleep(2 * A_MOMENT)
        yield Stuck(vm, (str(reader),))


@contextmanager
def creeping_migration(build: lab.Build) -> Iterator[Stuck]:
    """A migration that may send 8 KiB a second, and has 2 GiB of zeroes to tell of."""
    with (
        lab.folder() as place,
        lab.qemu(build, "-incoming", "defer", name="there", memory=2048) as there,
        lab.qemu(build, memory=2048) as vm,
    ):
        there.qmp("migrate-incoming", uri=f"unix:{place}/migration")
        vm.qmp("migrate-set-parameters", **{"max-bandwidth": 8 << 10})
        vm.qmp("migrate", uri=f"unix:{place}/migration")
        lab.until("it sends", lambda: vm.qmp("query-migrate").get("ram", {}).get("transferred", 0) > 0)
        yield Stuck(vm)
