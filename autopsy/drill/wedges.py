"""One function a scenario: each sets up a real QEMU and checks that it is really stuck."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from autopsy.drill.guests import write_boot_sector
from autopsy.drill.machine import Machine, of_device, start_machine
from autopsy.drill.process import states
from autopsy.drill.site import Site
from autopsy.drill.storage import disk, mount_file_system, serve_fuse, serve_nbd
from autopsy.errors import AutopsyError

WRITES = 8
WRITE = "64k"
ALREADY_STUCK_SECONDS = 0.5  # what a monitor gets whose main loop is about to go under
MOVING_WRITES = 10


def behind_a_throttle_timer(site: Site) -> Machine:
    """Eight writes to a disk that is limited to one byte a second: they wait for minutes, then hours, then days."""
    image = disk(site.folder / "disk.raw")
    vm = _vm(
        site,
        *("-drive", f"if=none,id=disk0,format=raw,file={image},throttling.bps-total=1,throttling.group=limits"),
        *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
    )
    _write(vm, "disk0")
    _stay_in_flight(vm)
    return vm


def behind_a_throttle_node(site: Site) -> Machine:
    """The same behind a throttle filter node, whose group has a name of its own."""
    image = disk(site.folder / "disk.raw")
    vm = _vm(
        site,
        *("-object", "throttle-group,id=limits,x-bps-total=1"),
        *("-blockdev", f"driver=file,node-name=file0,filename={image}"),
        *("-blockdev", "driver=throttle,node-name=throttle0,throttle-group=limits,file=file0"),
        *("-device", "virtio-blk-pci,id=vd0,drive=throttle0"),
    )
    _write(vm, of_device("vd0"))
    _stay_in_flight(vm)
    return vm


def silent_nbd_server(site: Site) -> Machine:
    """A qemu-nbd that is stopped under eight writes: the connection stands, no answer comes."""
    server = serve_nbd(site, disk(site.folder / "disk.raw"), tcp=True)
    vm = _vm(
        site,
        *("-blockdev", f"driver=nbd,node-name=nbd0,{server.server}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=nbd0"),
    )
    site.undo.callback(server.process.resume)
    server.process.stop()
    _write(vm, of_device("vd0"))
    _stay_in_flight(vm)
    return vm


def drain_without_end(site: Site) -> Machine:
    """A QMP `stop` over a silent NBD server: the main loop drains for ever, the monitor is dead with it."""
    vm = silent_nbd_server(site)
    with suppress(TimeoutError):
        vm.qmp("stop", within=ALREADY_STUCK_SECONDS)
        raise _came_to_nothing("`stop` returned")
    return vm


def frozen_file_system(site: Site) -> Machine:
    """A disk on a frozen file system, aio=threads: pool workers in D, the main loop alive."""
    vm = _on_a_frozen_file_system(site, "aio=threads", stuck="D")
    _stay_in_flight(vm)
    return vm


def frozen_file_system_native(site: Site) -> Machine:
    """The same with aio=native: the main loop itself is in D, inside io_submit."""
    return _on_a_frozen_file_system(site, "aio=native,cache.direct=on", stuck="D")


def _on_a_frozen_file_system(site: Site, engine: str, *, stuck: str) -> Machine:
    mounted = mount_file_system(site)
    image = disk(mounted.mount / "disk.raw", mebibytes=16)
    vm = _vm(
        site,
        *("-drive", f"if=none,id=disk0,format=raw,file={image},{engine}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
    )
    mounted.freeze_until_the_end(site)
    with suppress(TimeoutError):
        _write(vm, "disk0")
    vm.process.wait_until("a thread was in D", lambda: stuck in states(vm.pid))
    return vm


def stopped_process(site: Site) -> Machine:
    """QEMU under SIGSTOP: every thread in T."""
    vm = _vm(site)
    vm.process.stop()
    return vm


def paused_vm(site: Site) -> Machine:
    """A VM that somebody paused by QMP `stop`: nothing is wrong with it."""
    vm = _with_a_disk(site)
    vm.qmp("stop")
    return vm


def suspended_by_blkdebug(site: Site) -> Machine:
    """A write that a blkdebug breakpoint holds."""
    image = disk(site.folder / "disk.raw")
    vm = _vm(
        site,
        *("-blockdev", f"driver=file,node-name=file0,filename={image}"),
        *("-blockdev", "driver=blkdebug,node-name=blkdebug0,image=file0"),
        *("-device", "virtio-blk-pci,id=vd0,drive=blkdebug0"),
    )
    vm.qemu_io(of_device("vd0"), "break pwritev drill")
    vm.qemu_io(of_device("vd0"), f"aio_write 0 {WRITE}")
    vm.qemu_io(of_device("vd0"), "wait_break drill")
    return vm


def stuck_fuse_daemon(site: Site) -> Machine:
    """A disk on a FUSE file system whose daemon is stopped: pool workers wait for its answer."""
    export = serve_fuse(site, disk(site.folder / "disk.raw"))
    vm = _vm(
        site,
        *("-drive", f"if=none,id=disk0,format=raw,file={export.file}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
    )
    site.undo.callback(export.process.resume)  # ahead of QEMU's end: a request the daemon has read holds its thread
    export.process.stop()
    _write(vm, "disk0")
    vm.process.wait_until("a thread waited for the daemon", lambda: _waits_for_fuse(vm.pid))
    _stay_in_flight(vm)
    return vm


def _waits_for_fuse(pid: int) -> bool:
    return any("request_wait_answer" in place.read_text() for place in Path(f"/proc/{pid}/task").glob("*/wchan"))


def healthy_idle(site: Site) -> Machine:
    """A VM with a disk and nothing to do."""
    vm = _with_a_disk(site)
    vm.qemu_io("disk0", "write 0 64k")
    return vm


def healthy_busy(site: Site) -> Machine:
    """A guest that writes one sector after the other, as fast as it can."""
    image = disk(site.folder / "disk.raw")
    write_boot_sector(image)
    vm = _vm(
        site,
        *("-drive", f"if=none,id=disk0,format=raw,file={image}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
        boots=True,
    )
    vm.process.wait_until("its guest wrote", lambda: _writes_done(vm) >= MOVING_WRITES)
    return vm


def _vm(site: Site, *arguments: str, boots: bool = False) -> Machine:
    return start_machine(site, "-name", "guest=autopsy-drill,debug-threads=on", "-m", "64", *arguments, boots=boots)


def _with_a_disk(site: Site) -> Machine:
    image = disk(site.folder / "disk.raw")
    return _vm(
        site,
        *("-drive", f"if=none,id=disk0,format=raw,file={image}"),
        *("-device", "virtio-blk-pci,id=vd0,drive=disk0"),
    )


def _write(vm: Machine, target: str) -> None:
    for number in range(WRITES):
        vm.qemu_io(target, f"aio_write {number}M {WRITE}", within=ALREADY_STUCK_SECONDS)


def _writes_done(vm: Machine) -> int:
    """Return how many writes the disk has completed."""
    return sum(int(disk["stats"]["wr_operations"]) for disk in vm.qmp("query-blockstats") if "qdev" in disk)


def _stay_in_flight(vm: Machine) -> None:
    if _writes_done(vm) >= WRITES:
        raise _came_to_nothing("every write was completed")


def _came_to_nothing(why: str) -> AutopsyError:
    return AutopsyError("the drill", f"came to nothing: {why}", remedy="report it, with the version of QEMU")
