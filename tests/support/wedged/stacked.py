"""Images on storage that lies on other storage: the program at its end stands still, or does its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from autopsy.drill.process import run
from autopsy.drill.site import site
from support import lab
from support.wedged.wedges import A_MOMENT, DISK, Stuck, in_flight


@contextmanager
def ext4_on_loop_on_fuse(build: lab.Build, *, stops: bool = True) -> Iterator[Stuck]:
    """An image on ext4 on a loop device whose file a FUSE daemon serves, which is stopped."""
    lab.need_root()
    with ExitStack() as last:
        place = last.enter_context(lab.folder())
        served = last.enter_context(lab.fuse(lab.disk(place / "below.img")))
        there = last.enter_context(site())
        mount = there.folder / "ext4"
        mount.mkdir()
        run("mkfs.ext4", "-q", "-F", served.file)
        run("mount", "-o", "loop", served.file, mount)
        last.callback(run, "umount", "--lazy", mount)
        image = lab.disk(mount / "d", mebibytes=16)
        drive = f"if=none,id=disk0,format=raw,file={image},aio=threads,cache=none"
        vm = last.enter_context(lab.qemu(build, "-drive", drive, *DISK))
        if stops:
            last.enter_context(lab.stopped(served.process))
        in_flight(vm, "disk0", 4, within=A_MOMENT if stops else 10)
        if stops:
            lab.until("a worker waits", lambda: lab.any_thread_in(vm.pid, "D"))
        yield Stuck(vm, ("vd0", f" {served.process.pid}") if stops else ())
