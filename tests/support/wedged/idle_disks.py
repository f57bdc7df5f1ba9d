"""Disks that nobody reads or writes, whose server stands still: nothing waits yet. And a job that asks one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from autopsy.drill.process import tool
from support import lab
from support.wedged.wedges import A_MOMENT, DISK, NODE, Stuck


@contextmanager
def on_nbd(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """A disk that nobody reads or writes, whose NBD server is stopped."""
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d"), tcp=True) as server,
        lab.qemu(
            build,
            *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
            *("-device", f"{NODE}=nbd0"),
        ) as vm,
        lab.stopped(server.process) if stops else nullcontext(),
    ):
        yield Stuck(vm, (str(server.process.pid),) if stops else ())


@contextmanager
def on_fuse(build: lab.Build) -> Iterator[Stuck]:
    """A disk that nobody reads or writes, on a FUSE file system whose daemon is stopped."""
    with (
        lab.folder() as place,
        lab.fuse(lab.disk(place / "d")) as export,
        lab.qemu(build, "-drive", f"if=none,id=disk0,format=raw,file={export.file}", *DISK) as vm,
        lab.stopped(export.process),
    ):
        yield Stuck(vm, (str(export.process.pid),))


@contextmanager
def streamed_from_fuse(build: lab.Build) -> Iterator[Stuck]:
    """A stream job that reads its base through the page cache, from a FUSE file system whose daemon is stopped."""
    with lab.folder() as place, lab.fuse(lab.disk(place / "d")) as export:
        top = place / "top.qcow2"
        filled = [tool("qemu-io"), "-f", "raw", "-c", "write -P 2 0 32M", export.file]
        subprocess.run(filled, check=True, stdout=subprocess.DEVNULL)
        made = [tool("qemu-img"), "create", "-q", "-f", "qcow2", "-b", export.file, "-F", "raw", top]
        subprocess.run(made, check=True)
        with (
            lab.qemu(
                build,
                *("-blockdev", f"driver=file,node-name=file0,filename={top}"),
                *("-blockdev", f"driver=file,node-name=served0,filename={export.file}"),
                *("-blockdev", "driver=raw,node-name=base0,file=served0,read-only=on"),
                *("-blockdev", "driver=qcow2,node-name=top0,file=file0,backing=base0"),
                *("-device", f"{NODE}=top0"),
            ) as vm,
            lab.stopped(export.process),
        ):
            with suppress(TimeoutError):
                vm.qmp("block-stream", **{"job-id": "job0", "device": "top0"}, within=4 * A_MOMENT)
            time.sleep(A_MOMENT)
            yield Stuck(vm, (str(export.process.pid),), export.process.resume)
