"""QEMUs that one look, one counter or one name tells for another wedge, or for a wedge at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autopsy.drill.machine import of_device
from support import lab
from support.builds import missing
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import A_MOMENT, NODE, TALK, Stuck, in_flight, running, until_it_works

OPENS = "import os, time\nend = os.open({name!r}, os.O_RDWR | os.O_NOCTTY)\nprint(1, flush=True)\ntime.sleep(600)\n"
HOLDS = """
import fcntl, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = open({path!r}, "r+b")
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(1, flush=True)
time.sleep(600)
"""
GROUPS = Path("/sys/fs/cgroup/cpu")  # a control group of v1: a period of a second makes the starving plain
GEOMETRY = "cyls=100,heads=16,secs=63"


@contextmanager
def _program(code: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout
            program.stdout.readline()
            yield program
        finally:
            program.kill()


@contextmanager
def console_to_a_terminal(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A guest that talks to a debug console, a terminal whose program is stopped; or nobody has opened it."""
    console = ("-chardev", "pty,id=console0", "-device", "isa-debugcon,iobase=0xe9,chardev=console0")
    with running(build, TALK, console) as it:
        told = next(each["filename"] for each in it.vm.qmp("query-chardev") if each["label"] == "console0")
        if not stops:
            yield it
            return
        with _program(OPENS.format(name=told.removeprefix("pty:"))) as reader:
            os.kill(reader.pid, signal.SIGSTOP)
            time.sleep(6 * A_MOMENT)  # until the terminal takes no more
            yield Stuck(it.vm, (str(reader.pid),))


@contextmanager
def leased(build: lab.Build) -> Iterator[Stuck]:
    """The main thread opens a file that another program holds a lease on, and does not give back."""
    with lab.folder() as place, lab.qemu(build) as vm:
        image = lab.disk(place / "d")
        with _program(HOLDS.format(path=str(image))) as holder:
            with suppress(TimeoutError):
                node = {"driver": "file", "node-name": "file0", "filename": str(image)}
                vm.qmp("blockdev-add", **node, within=A_MOMENT)
            yield Stuck(vm, (str(image), str(holder.pid)))


@contextmanager
def dumped_to_a_fifo(build: lab.Build) -> Iterator[Stuck]:
    """A dump of the guest's memory in the background, to a FIFO whose reader does not read: the VM is paused for it."""
    with lab.folder() as place, lab.qemu(build) as vm:
        path = place / "fifo"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            vm.qmp("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)
            lab.until("it dumps", lambda: vm.qmp("query-dump")["completed"] > 0)
            time.sleep(2 * A_MOMENT)
            yield Stuck(vm, (str(path), str(os.getpid())))
        finally:
            os.close(reader)


@contextmanager
def starved(build: lab.Build) -> Iterator[Stuck]:
    """A guest at work that its control group gives a thousandth of a processor."""
    if not (GROUPS / "cpu.cfs_quota_us").exists():
        missing("no control groups of v1 for processors here")
    group = GROUPS / f"autopsy-{os.getpid()}"
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        node = ("-blockdev", f"driver=file,node-name=file0,filename={image}", "-device", f"{NODE}=file0,{GEOMETRY}")
        try:
            with lab.qemu(build, *node, accelerate=lab.TO_BOOT, boots=True) as vm:
                until_it_works(vm, 1)
                group.mkdir()
                (group / "cpu.cfs_period_us").write_text("1000000")
                (group / "cpu.cfs_quota_us").write_text("1000")
                (group / "cgroup.procs").write_text(str(vm.pid))
                try:
                    time.sleep(4 * A_MOMENT)
                    yield Stuck(vm)
                finally:
                    (group / "cpu.cfs_quota_us").write_text("-1")
        finally:
            if group.exists():
                lab.until("the cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
                group.rmdir()


@contextmanager
def before_a_write(build: lab.Build, seconds: int) -> Iterator[Stuck]:
    """A guest that writes below a backup's filter whose target is stopped; a write waits for it for so long."""
    with lab.folder() as place, lab.nbd(lab.disk(place / "t")) as target:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        copies = "driver=copy-before-write,node-name=copy0,file=file0,target=nbd0,on-cbw-error=break-snapshot"
        with lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={image}"),
            *("-blockdev", f"driver=nbd,node-name=nbd0,{target.server}"),
            *("-blockdev", f"{copies},cbw-timeout={seconds}", "-device", f"{NODE}=copy0,{GEOMETRY}"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            until_it_works(vm, 1)
            with lab.stopped(target.process):
                time.sleep(12.0)  # a cluster is 128 of the guest's writes: it came to the next one meanwhile
                yield Stuck(vm, ("vd0", str(target.process.pid)))


@contextmanager
def one_of_two_servers(build: lab.Build) -> Iterator[Stuck]:
    """Two disks at servers of their own: the guest writes to one, and a person asks the other, which is stopped."""
    with (
        lab.folder() as place,
        lab.nbd(boot_sector(lab.disk(place / "a"), WRITE_NOW_AND_THEN), tcp=True) as first,
        lab.nbd(lab.disk(place / "b"), tcp=True) as second,
    ):
        words = []
        for number, server in enumerate((first, second)):
            words += ["-blockdev", f"driver=nbd,node-name=nbd{number},{server.server}"]
            device = f"virtio-blk-pci,id=vd{number},drive=nbd{number},bootindex={number},{GEOMETRY}"
            words += ["-device", device]
        with lab.qemu(build, *words, accelerate=lab.TO_BOOT, boots=True) as vm, lab.stopped(second.process):
            until_it_works(vm, 1)
            in_flight(vm, of_device("vd1"), 5)
            yield Stuck(vm, ("vd1", str(second.process.pid)))


@contextmanager
def without_descriptors(build: lab.Build) -> Iterator[Stuck]:
    """A VM that is well, and may open nothing more."""
    with lab.qemu(build) as vm:
        time.sleep(A_MOMENT)  # until it has closed what asked whether it is up
        opened = {int(name) for name in os.listdir(f"/proc/{vm.pid}/fd")}
        most = next(number for number in range(len(opened) + 1) if number not in opened)
        resource.prlimit(vm.pid, resource.RLIMIT_NOFILE, (most, most))
        time.sleep(A_MOMENT)
        yield Stuck(vm)
