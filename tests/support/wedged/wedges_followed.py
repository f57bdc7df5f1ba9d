"""QEMUs that wait for somebody who is not easily seen: an opener, themselves, a snapshot's reader, who has left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from autopsy.drill import storage
from autopsy.drill.machine import QmpRefused
from autopsy.drill.process import states
from autopsy.drill.site import site
from autopsy.linux import ptrace
from support import lab
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import A_MOMENT, BOOT_SECONDS, DISK, NODE, TALK, Stuck, in_flight, running, until_it_works

READS_ONCE = """
import socket, time
server = socket.socket(socket.AF_UNIX)
server.bind({path!r})
server.listen()
print("ready", flush=True)
client, _ = server.accept()
while {reads}:
    client.recv(1 << 16)
time.sleep(600)
"""


@contextmanager
def fifo_opener(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """The main thread opens a FIFO, and the program that opens its other end is stopped in that very call."""
    with lab.folder() as place, lab.qemu(build) as vm:
        fifo = place / "secret"
        os.mkfifo(fifo)
        code = f"stream = open({str(fifo)!r}, 'w'); stream.write('secret'); stream.close()"
        with subprocess.Popen([sys.executable, "-c", code]) as writer:
            try:
                lab.until("it is in open", lambda: lab.waits_in(writer.pid, "wait_for_partner"))
                if stops:
                    os.kill(writer.pid, signal.SIGSTOP)
                    lab.until("it is stopped there", lambda: states(writer.pid) == {"T"})
                with suppress(TimeoutError):
                    vm.qmp("object-add", within=A_MOMENT, **{"qom-type": "secret", "id": "s0", "file": str(fifo)})
                yield Stuck(vm, (str(fifo), str(writer.pid)))
            finally:
                with suppress(ProcessLookupError):
                    os.kill(writer.pid, signal.SIGCONT)


@contextmanager
def served_by_itself(build: lab.Build) -> Iterator[Stuck]:
    """A QEMU that opens a file of its own FUSE export: its main loop waits for its main loop."""
    lab.need_root()
    with lab.folder() as place:
        mount = place / "export.raw"
        mount.touch()
        node = f"driver=file,node-name=f0,filename={lab.disk(place / 'd')}"
        try:
            with lab.qemu(build, "-blockdev", node) as vm:
                export = {"type": "fuse", "id": "e0", "node-name": "f0", "mountpoint": str(mount), "writable": True}
                vm.qmp("block-export-add", **export)
                with suppress(TimeoutError):
                    again = {"driver": "file", "node-name": "g0", "filename": str(mount)}
                    vm.qmp("blockdev-add", within=A_MOMENT, **again)
                yield Stuck(vm, (str(mount), str(vm.pid)))
        finally:
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


@contextmanager
def snapshot_unread(build: lab.Build, *, reads: bool = False) -> Iterator[Stuck]:
    """A background snapshot whose reader does not read, and is stopped: the guest waits to write to a page."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        path = str(place / "snapshot")
        code = READS_ONCE.format(path=path, reads=reads)
        drive = ("-drive", f"if=none,id=disk0,format=raw,file={image}", *DISK)
        with (
            lab.qemu(build, *drive, accelerate=lab.KVM, boots=True, memory=256) as vm,
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader,
        ):
            try:
                assert reader.stdout
                reader.stdout.readline()
                until_it_works(vm, 1)
                snapshot = [{"capability": "background-snapshot", "state": True}]
                vm.qmp("migrate-set-capabilities", capabilities=snapshot)
                if reads:
                    vm.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 17})
                with suppress(TimeoutError, QmpRefused):
                    vm.qmp("migrate", within=A_MOMENT, uri=f"unix:{path}")
                time.sleep(4 * A_MOMENT)
                if not reads:
                    os.kill(reader.pid, signal.SIGSTOP)
                yield Stuck(vm, (str(reader.pid),))
            finally:
                os.kill(reader.pid, signal.SIGKILL)


@contextmanager
def server_left(build: lab.Build, *, leaves: bool = True) -> Iterator[Stuck]:
    """A disk whose FUSE server was killed: two requests failed at once, and then nobody asked for any more."""
    with lab.folder() as place, site() as there:
        export = storage.serve_fuse(there, lab.disk(place / "d"))
        drive = f"if=none,id=disk0,format=raw,file={export.file}"
        with lab.qemu(
            build, "-device", "virtio-scsi-pci", "-drive", drive, "-device", "scsi-hd,id=hd0,drive=disk0"
        ) as vm:
            if leaves:
                export.process.end()
            in_flight(vm, "disk0", 2)
            time.sleep(A_MOMENT)
            yield Stuck(vm, ("hd0", str(export.file)))


@contextmanager
def polling(build: lab.Build) -> Iterator[Stuck]:
    """A guest at work whose iothread polls for up to two seconds: it uses a processor, and that is as it was told."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        with lab.qemu(
            build,
            *("-object", "iothread,id=io0,poll-max-ns=2000000000"),
            *("-blockdev", f"driver=file,node-name=f0,filename={image}", "-device", f"{NODE}=f0,iothread=io0"),
            accelerate=lab.KVM,
            boots=True,
        ) as vm:
            until_it_works(vm, 1)
            yield Stuck(vm)


@contextmanager
def limit_below_a_limit(build: lab.Build, lower: str = "x-bps-total=1") -> Iterator[Stuck]:
    """Two throttle filters, one below the other: the upper would let all through, the lower lets none."""
    with (
        lab.folder() as place,
        lab.qemu(
            build,
            *("-object", "throttle-group,id=wide,x-iops-total=1000", "-object", f"throttle-group,id=narrow,{lower}"),
            *("-blockdev", f"driver=file,node-name=f0,filename={lab.disk(place / 'd')}"),
            *("-blockdev", "driver=throttle,node-name=t0,throttle-group=narrow,file=f0"),
            *("-blockdev", "driver=throttle,node-name=t1,throttle-group=wide,file=t0"),
            *("-device", f"{NODE}=t1,cyls=100,heads=16,secs=63"),
        ) as vm,
    ):
        in_flight(vm, lab.of_device("vd0"), 6, size="64k")
        yield Stuck(vm, ("vd0", "narrow"))


@contextmanager
def mirror_writes(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A guest whose writes a mirror writes to its target, too, before they end; the target's server is stopped."""
    with lab.folder() as place, lab.nbd(lab.disk(place / "target")) as server:
        image = boot_sector(lab.disk(place / "d"), WRITE_NOW_AND_THEN)
        with lab.qemu(
            build,
            *("-blockdev", f"driver=file,node-name=file0,filename={image}", "-device", f"{NODE}=file0"),
            *("-blockdev", f"driver=nbd,node-name=target0,{server.server}"),
            *("-blockdev", "driver=null-co,node-name=other0,size=1048576,read-zeroes=on"),
            *("-device", "virtio-blk-pci,id=vd1,drive=other0"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ) as vm:
            until_it_works(vm, 1)
            copies = {"device": "file0", "target": "target0", "sync": "full", "copy-mode": "write-blocking"}
            vm.qmp("blockdev-mirror", **{"job-id": "mirror0", **copies})
            lab.until("it has copied all", lambda: vm.qmp("query-jobs")[0]["status"] == "ready")
            if not stops:
                yield Stuck(vm)
                return
            with lab.stopped(server.process):
                time.sleep(A_MOMENT)  # until the guest has written again
                yield Stuck(vm, ("vd0", f"qemu-nbd {server.process.pid}"), server.process.resume)


@contextmanager
def console_to_a_file(build: lab.Build, *, freezes: bool = True) -> Iterator[Stuck]:
    """A guest that talks to a debug console, which goes to a file on a frozen file system: no migration is about."""
    with lab.file_system() as mounted:
        log = mounted.mount / "console.log"
        chardev = ("-chardev", f"file,id=console0,path={log}", "-device", "isa-debugcon,iobase=0xe9,chardev=console0")
        with running(build, TALK, chardev) as it:
            lab.until("it has talked", lambda: log.stat().st_size > 0, seconds=BOOT_SECONDS)
            if not freezes:
                yield Stuck(it.vm)
                return
            with lab.frozen(mounted):
                lab.until("a vCPU waits", lambda: lab.any_thread_in(it.vm.pid, "D"), seconds=BOOT_SECONDS)
                time.sleep(A_MOMENT)
                yield Stuck(it.vm, (str(mounted.mount), "CPU 0"), mounted.thaw)


@contextmanager
def drains_rcu(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A device that cannot be added: the main thread waits for RCU's own thread, which a tracer of ours keeps."""
    with lab.qemu(build) as vm:
        second = sorted(map(int, os.listdir(f"/proc/{vm.pid}/task")))[1]  # RCU's begins before all others
        if stops:
            assert ptrace.seize(second) == 0
            ptrace.interrupt(second)
            lab.until("it stands", lambda: not isinstance(ptrace.stop_state(second), ptrace.Moving))
        try:
            with suppress(TimeoutError, QmpRefused):
                vm.qmp("device_add", driver="virtio-blk-pci", id="vd9", drive="nobody's", within=A_MOMENT)
            yield Stuck(vm, (str(second),))
        finally:
            ptrace.detach(second, 0)


@contextmanager
def channels_unread(build: lab.Build) -> Iterator[Stuck]:
    """A migration over several channels that nobody reads: its main thread waits for those that send."""
    with lab.folder() as place, socket.socket(socket.AF_UNIX) as listener, ExitStack() as taken:
        listener.bind(str(place / "migration"))
        listener.listen()
        listener.settimeout(BOOT_SECONDS)
        with running(build, TALK) as it:
            it.vm.qmp("migrate-set-capabilities", capabilities=[{"capability": "multifd", "state": True}])
            it.vm.qmp("migrate-set-parameters", **{"max-bandwidth": 0, "multifd-channels": 2})
            it.vm.qmp("migrate", uri=f"unix:{place}/migration")
            for _ in range(3):
                taken.enter_context(listener.accept()[0])
            time.sleep(2 * A_MOMENT)
            yield Stuck(it.vm, (f"{place}/migration",))
