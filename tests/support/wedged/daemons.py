"""Real storage daemons: exports that are stuck in one way or another, and their healthy twins."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.drill.machine import Machine, ask
from autopsy.drill.process import start, states, tool
from autopsy.drill.site import Site, site
from support import lab
from support.wedged.small_guests import WRITE_NOW_AND_THEN, boot_sector
from support.wedged.wedges import BOOT_SECONDS, Stuck

OTHER = "driver=null-co,node-name=other0,size=1048576,read-zeroes=on"  # beside the one that is stuck: it is not named


def daemon(there: Site, build: lab.Build, *words: str, monitor: bool = True, served: str = "node0") -> Machine:
    """Run a storage daemon with two NBD exports: export0 of a node that the words make, and one that is well."""
    path = there.folder / "qmp"
    listens = ("--chardev", f"socket,id=c0,path={path},server=on,wait=off", "--monitor", "chardev=c0")
    process = start(
        there,
        [
            *build.tool("qemu-storage-daemon"),
            *(listens if monitor else ()),
            *words,
            *("--blockdev", OTHER),
            *("--nbd-server", f"addr.type=unix,addr.path={there.folder}/nbd,max-connections=0"),
            *(
                "--export",
                f"type=nbd,id=export0,node-name={served},name=disk,writable={'on' if served == 'node0' else 'off'}",
            ),
            "--export=type=nbd,id=export1,node-name=other0,name=other",
        ],
        log="daemon.log",
    )
    process.wait_until("it listened", (there.folder / "nbd").exists)
    if monitor:
        process.wait_until("its monitor answered", lambda: _answers(path))
    return Machine(process, path, path)


def _answers(path: Path) -> bool:
    try:
        ask(path, "query-version", {}, within=10.0)
    except (FileNotFoundError, ConnectionError, TimeoutError):
        return False
    return True


@contextmanager
def client(there: Site, *commands: str) -> Iterator[subprocess.Popen[bytes]]:
    """A qemu-io that is connected to export0, says each command, and stays."""
    words = [word for command in commands for word in ("-c", command)]
    uri = f"nbd+unix:///disk?socket={there.folder}/nbd"
    running = subprocess.Popen(
        [tool("qemu-io"), "-f", "raw", "-t", "none", uri, *words, "-c", "sleep 600000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


WRITES = tuple(f"aio_write {place}M 4k" for place in range(4))


@contextmanager
def throttled(build: lab.Build, limit: str = "iops-total") -> Iterator[Stuck]:
    """An export over a throttle filter that lets hardly a request through: by bytes (`bps-total`), none at all."""
    with site() as there:
        image = lab.disk(there.folder / "d")
        it = daemon(
            there,
            build,
            *("--object", "throttle-group,id=slow0,limits.iops-total=1,limits.iops-total-max=1"),
            *("--blockdev", f"driver=file,node-name=file0,filename={image}"),
            *("--blockdev", "driver=throttle,node-name=node0,file=file0,throttle-group=slow0"),
        )
        it.qmp(
            "qom-set", path="/objects/slow0", property="limits", value={"iops-total": 0, "iops-total-max": 0, limit: 1}
        )
        writes = tuple(f"aio_write {place}k 4k" for place in range(0, 256, 4))
        with client(there, *writes):
            lab.until("a write was done", lambda: image.stat().st_blocks > 0)
            yield Stuck(it, ("export0", "node0", "slow0"))


@contextmanager
def frozen(build: lab.Build, *, monitor: bool = True) -> Iterator[Stuck]:
    """An export of a file on a frozen file system."""
    with lab.file_system() as mounted, site() as there:
        it = daemon(
            there,
            build,
            *("--blockdev", f"driver=file,node-name=node0,filename={lab.disk(mounted.mount / 'd', mebibytes=16)}"),
            monitor=monitor,
        )
        with lab.frozen(mounted), client(there, *WRITES):
            lab.until("a worker sleeps for good", lambda: "D" in states(it.pid))
            yield Stuck(it, ("export0", "node0", str(mounted.mount)), mounted.thaw)


@contextmanager
def serving(build: lab.Build, *, busy: bool = False, monitor: bool = True) -> Iterator[Stuck]:
    """An export that does its work: its client asks for nothing, or writes again and again."""
    with site() as there:
        image = lab.disk(there.folder / "d")
        node = f"driver=file,node-name=node0,filename={image}"
        it = daemon(there, build, "--blockdev", node, monitor=monitor)
        commands = ("write 0 4k",) if not busy else ("write 0 4k", *(f"write -P {one} 0 32M" for one in range(1, 200)))
        with client(there, *commands):
            lab.until("a write was done", lambda: image.stat().st_blocks > 0)
            yield Stuck(it)


@contextmanager
def awaiting_its_monitor(build: lab.Build) -> Iterator[Stuck]:
    """A daemon that waits for the first client of its monitor: it serves nobody yet."""
    with site() as there:
        path = there.folder / "qmp"
        process = start(
            there,
            [
                *build.tool("qemu-storage-daemon"),
                *("--chardev", f"socket,id=c0,path={path},server=on,wait=on", "--monitor", "chardev=c0"),
            ],
            log="daemon.log",
        )
        process.wait_until("it listens", path.exists)
        yield Stuck(Machine(process, path, path), (str(path),))


@contextmanager
def vhost_user(build: lab.Build, *, slow: bool = False) -> Iterator[Stuck]:
    """A vhost-user-blk export that a guest writes to for ever; `slow` lets hardly a request of it through."""
    with site() as there:
        image = boot_sector(lab.disk(there.folder / "d"), WRITE_NOW_AND_THEN)
        path = there.folder / "vhost"
        export = f"type=vhost-user-blk,id=vhost0,node-name=node0,addr.type=unix,addr.path={path},writable=on"
        it = daemon(
            there,
            build,
            *("--object", "throttle-group,id=slow0,limits.iops-total=0"),
            *("--blockdev", f"driver=file,node-name=file0,filename={image}"),
            *("--blockdev", "driver=throttle,node-name=node0,file=file0,throttle-group=slow0"),
            *("--export", export),
            served="file0",
        )
        with lab.qemu(
            build,
            *("-object", "memory-backend-memfd,id=ram0,size=64M,share=on", "-machine", "memory-backend=ram0"),
            *("-chardev", f"socket,id=vhost0,path={path}", "-device", "vhost-user-blk-pci,id=vd0,chardev=vhost0"),
            accelerate=lab.TO_BOOT,
            boots=True,
        ):
            began = image.stat().st_mtime_ns
            lab.until("its guest wrote", lambda: image.stat().st_mtime_ns > began, seconds=BOOT_SECONDS)
            if slow:
                limits = {"bps-total": 1}
                it.qmp("qom-set", path="/objects/slow0", property="limits", value=limits)
            yield Stuck(it, ("vhost0", "node0", "slow0"))
