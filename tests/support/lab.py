"""Real QEMUs and really stuck storage for tests."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from autopsy.drill import storage
from autopsy.drill.machine import Machine, start_machine
from autopsy.drill.machine import of_device as of_device  # noqa: PLC0414 - tests read it from here
from autopsy.drill.process import DrillProcess, states
from autopsy.drill.site import Site, site
from autopsy.drill.storage import FuseExport, LoopFileSystem, NbdServer
from support.builds import LAB, Build, build, missing, version
from support.builds import need_older_than as need_older_than  # noqa: PLC0414 - tests read it from here
from support.builds import qemu_builds as qemu_builds  # noqa: PLC0414 - tests read it from here

HOUSE = Path(__file__).resolve().parents[2]

KVM = ("-accel", "kvm")
TCG = ("-accel", "tcg")
SOAK = os.environ.get("AUTOPSY_SOAK") == "1"
# A KVM that is emulated itself takes seconds for what a firmware does; TCG a tenth of one.
TO_BOOT = KVM if SOAK else TCG
GUEST_SECONDS = 90.0
DEADLOCK_TRIES, DEADLOCK_SECONDS = 8, 15.0
DEADLOCKS = "10.0.2"  # which has the fault; the stable releases after it have it no more


def guest_files() -> tuple[Path, Path]:
    """Return kernel and initrd of the small Linux guest (AUTOPSY_GUEST names their folder)."""
    folder = Path(os.environ.get("AUTOPSY_GUEST", LAB / "guest"))
    kernel, initrd = folder / "vmlinuz", folder / "initrd.gz"
    if not (kernel.is_file() and initrd.is_file()):
        missing("the guest's kernel and initrd are not here: `make lab` makes them")
    return kernel, initrd


def kvm_works() -> bool:
    """Return whether /dev/kvm opens."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def need_root() -> None:
    """Skip where we are not root."""
    if os.geteuid() != 0:
        missing("needs root")


@contextmanager
def qemu(
    which: Build | str,
    *arguments: str,
    name: str = "t",
    memory: int = 64,
    accelerate: tuple[str, ...] = TCG,
    boots: bool = False,
    at: Site | None = None,
) -> Iterator[Machine]:
    """Run a QEMU: `.pid`, `.monitor` (the socket for the code under test), `.qmp(command, **arguments)`,
    `.hmp(line)`, `.qemu_io("disk0", "aio_write 0 4k")` for a -drive's id, `.qemu_io(of_device("vd0"), …)` for a
    -blockdev behind a virtio disk; `.process.stop()`, `.process.log`.

    Its vCPU halts at once unless it `boots`: a firmware would reset, drain and read the disks in its first seconds.
    Our own questions go to a second monitor. Always killed and waited for on the way out.
    Storage that it hangs on must be set free first: enter `frozen` or `stopped` inside this context.
    """
    chosen = build(which) if isinstance(which, str) else which
    with site() if at is None else nullcontext(at) as there:
        yield start_machine(
            there,
            *chosen.firmware_arguments,
            "-name",
            f"guest={name},debug-threads=on",
            "-m",
            str(memory),
            *arguments,
            qemu=chosen.command,
            accelerate=accelerate,
            boots=boots,
            own_control=True,
        )


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder whose path is short enough for a UNIX socket; it goes away with everything in it."""
    with site() as there:
        yield there.folder


disk = storage.disk


@contextmanager
def file_system(kind: str = "ext4") -> Iterator[LoopFileSystem]:
    """Mount a new ext4 or xfs from a loop file: `.mount`, `.device`; thawed and unmounted always. See `frozen`."""
    need_root()
    with site() as there:
        yield storage.mount_file_system(there, kind)


@contextmanager
def frozen(mounted: LoopFileSystem) -> Iterator[None]:
    """Freeze a file system for a while."""
    try:
        mounted.freeze()
        yield
    finally:
        mounted.thaw()


@contextmanager
def nbd(image: Path, *, tcp: bool = False) -> Iterator[NbdServer]:
    """Run a real qemu-nbd: `driver=nbd,{.server}`, `.process.stop()`."""
    with site() as there:
        yield storage.serve_nbd(there, image, tcp=tcp)


@contextmanager
def fuse(image: Path) -> Iterator[FuseExport]:
    """Run a real FUSE daemon that serves `.file`; `.process.stop()` makes it a daemon that hangs."""
    need_root()
    with site() as there:
        yield storage.serve_fuse(there, image)


@contextmanager
def stopped(which: DrillProcess | Machine) -> Iterator[None]:
    """SIGSTOP a process for a while; it runs again on the way out."""
    process = which.process if isinstance(which, Machine) else which
    try:
        process.stop()
        yield
    finally:
        process.resume()


@contextmanager
def frozen_cgroup(pid: int) -> Iterator[Path]:
    """Freeze a process by a cgroup of its own (v2, or the v1 freezer); thawed and put back on the way out."""
    need_root()
    unified = next((each for each in _mounts("cgroup2") if (each / "cgroup.subtree_control").exists()), None)
    frozen_by_v1 = next((each for each in _mounts("cgroup") if each.name == "freezer"), None)
    if unified is None and frozen_by_v1 is None:
        missing("no cgroup file system is mounted")
    root = frozen_by_v1 or unified
    file, freeze, thaw = ("freezer.state", "FROZEN", "THAWED") if frozen_by_v1 else ("cgroup.freeze", "1", "0")
    assert root is not None
    home = _cgroup_of(pid, "freezer" if frozen_by_v1 else "")
    group = root / f"autopsy-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / file).write_text(freeze)
        if frozen_by_v1:
            until("the cgroup is frozen", lambda: (group / file).read_text().strip() == "FROZEN")
        else:
            until("the cgroup is frozen", lambda: "frozen 1" in (group / "cgroup.events").read_text())
        yield group
    finally:
        (group / file).write_text(thaw)
        if Path(f"/proc/{pid}").exists():
            (root / home.lstrip("/") / "cgroup.procs").write_text(str(pid))
        until("the cgroup is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _mounts(kind: str) -> list[Path]:
    rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(row[1]) for row in rows if row[2] == kind]


def _cgroup_of(pid: int, controller: str) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def until(what: str, happened: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait for something; the test fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"{seconds:g} s have passed before {what}")
        time.sleep(0.01)


def any_thread_in(pid: int, state: str) -> bool:
    """Return whether a thread of the process is in that state, such as "D"."""
    return state in states(pid)


def waits_in(pid: int, wchan: str) -> bool:
    """Return whether a thread sleeps in a kernel function whose name has `wchan` in it (a FUSE wait is S or D)."""
    return any(wchan in each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/wchan"))


@contextmanager
def guest(
    which: Build | str,
    *arguments: str,
    load: str = "",
    device: str = "/dev/vda",
    name: str = "guest",
    accelerate: tuple[str, ...] = ("-accel", "tcg,thread=multi", "-cpu", "max"),  # a nested KVM may not boot it
) -> Iterator[Machine]:
    """Boot the small Linux guest until it says LAB-GUEST-UP; its console is `console(machine)`.

    `load` is JOBS,DEPTH,BLOCK,w|r,rand|seq,SECONDS, run by iogen on `device`.
    """
    kernel, initrd = guest_files()
    words = ["console=ttyS0", "quiet", "mitigations=off", *([f"lab.dev={device}", f"lab.io={load}"] if load else [])]
    with (
        site() as there,
        qemu(
            which,
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", " ".join(words)),
            *("-serial", f"file:{there.folder}/console"),
            *arguments,
            name=name,
            memory=512,
            accelerate=accelerate,
            boots=True,
            at=there,
        ) as running,
    ):
        running.process.wait_until(
            "the guest was up", lambda: "LAB-GUEST-UP" in console(running), seconds=GUEST_SECONDS
        )
        yield running


def console(machine: Machine) -> str:
    """Return what the guest has written to its serial console."""
    try:
        return (machine.monitor.parent / "console").read_text(errors="replace")
    except FileNotFoundError:
        return ""


def writes_done(machine: Machine, device: str) -> int:
    """Return how many guest writes QEMU has completed on a device (its qdev id)."""
    for each in machine.qmp("query-blockstats"):
        if each.get("qdev", "").startswith(f"/machine/peripheral/{device}/"):
            return int(each["stats"]["wr_operations"])
    raise LookupError(device)


@contextmanager
def throttle_deadlock(which: Build | str = "10.0.2") -> Iterator[Machine]:
    """Bring a QEMU 10.0.2 into the self-deadlock of its throttle group's lock (QEMU issue 3144), for good.

    query-block on it takes the main loop away; query-status answers.
    """
    threads = [f"iothread{number}" for number in range(1, 5)]
    mapping = ",".join(f'{{"iothread":"{thread}"}}' for thread in threads)
    with folder() as place:
        image = disk(place / "d.raw", mebibytes=256)
        with guest(
            which,
            *(word for thread in threads for word in ("-object", f"iothread,id={thread}")),
            *("-blockdev", f"driver=file,filename={image},node-name=f0,aio=native,cache.direct=on"),
            "-device",
            f'{{"driver":"virtio-blk-pci","num-queues":4,"iothread-vq-mapping":[{mapping}],"id":"vd0","drive":"f0"}}',
            *("-smp", "4"),
            load="8,16,4096,w,rand,100000",
            name="throttled",
        ) as running:
            until(
                "the guest has done 20000 writes", lambda: writes_done(running, "vd0") >= 20000, seconds=GUEST_SECONDS
            )
            told = version(build(which) if isinstance(which, str) else which)
            tries = DEADLOCK_TRIES if told == DEADLOCKS else 1
            for _ in range(tries):  # it is a race, which a limit either starts within seconds or not at all
                try:
                    limit_writes(running, 0)
                except TimeoutError:  # it began after the last look, and the monitor's thread has come to the lock
                    if _deadlocks(running.pid, DEADLOCK_SECONDS):
                        break
                    raise
                before = writes_done(running, "vd0")
                time.sleep(1)
                # A limit that a loaded machine never comes near holds nobody back, and then nobody comes to the lock.
                limit_writes(running, max(400_000, min(40_000_000, (writes_done(running, "vd0") - before) * 4096 // 3)))
                if _deadlocks(running.pid, DEADLOCK_SECONDS):
                    break
            else:
                words = f"no thread waits for a mutex that is its own, after {tries} tries"
                (pytest.fail if told == DEADLOCKS else pytest.skip)(f"{words}: QEMU {told}")
            yield running


def limit_writes(machine: Machine, rate: int) -> None:
    """Let a guest write so many bytes a second to the disk vd0; 0 is no limit."""
    limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
    machine.qmp("block_set_io_throttle", id="/machine/peripheral/vd0/virtio-backend", bps_wr=rate, **limits)


def _deadlocks(pid: int, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if _for_good(pid):
            return True
    return False


def _for_good(pid: int) -> bool:
    """Look twice: a thread that had just been given the lock looks like one that waits for itself."""
    first = set(self_deadlocked(pid))
    time.sleep(0.2)
    return bool(first & set(self_deadlocked(pid)))


def self_deadlocked(pid: int) -> list[int]:
    """Return the threads that wait for a glibc mutex whose owner they are."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()
        if words[0] == "202" and int(words[2], 16) == 0x80 and int(words[3], 16) == 2:  # FUTEX_WAIT_PRIVATE, contended
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(int(words[1], 16) + 8)  # __owner
                if int.from_bytes(memory.read(4), "little") == int(task.name):
                    found.append(int(task.name))
    return found


def leftovers(run: Path) -> list[str]:
    """Return what is left below the folder of a test run: processes, mounts and loop devices."""
    mark = f"{run}/"
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if mark in line]
    for each in Path("/sys/block").glob("loop*/loop/backing_file"):
        backing = each.read_text().strip()
        if backing.startswith(mark):
            found.append(f"{each.parent.parent.name} on {backing}")
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = each.read_bytes().replace(bytes(1), b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if mark in command:
            found.append(f"process {each.parent.name}: {command[:200]}")
    return found
