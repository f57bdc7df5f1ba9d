"""Finds threads that sleep in the kernel, and the disks that their files serve."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from autopsy.dataclass import dataclass
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import kernel_stacks
from autopsy.diagnose.queries.kernel_stacks import Family
from autopsy.diagnose.queries.requests import (
    disks_of,
    monitor_is_dead,
    still,
)
from autopsy.diagnose.queries.threads import by_role, descriptor, looks, slept_through, threads
from autopsy.facts.cite import Known, Unknown
from autopsy.facts.command_line import parse
from autopsy.facts.model.facts import Descriptor, DiskFact, Facts, MountFact, Park, Role, ThreadFact, ThreadSnapshot
from autopsy.facts.subjects import HostDevice

MOST_NAMED = 4
# The thread of a background snapshot; `mig/snapshot` since QEMU 9.1 ("migration: Rename thread debug names").
SAVES_PAGES = frozenset({"bg_snapshot", "mig/snapshot"})
FAULTS = frozenset({"handle_mm_fault", "__handle_mm_fault", "do_page_mkwrite", "filemap_fault", "exc_page_fault"})


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A thread that waits in the kernel, and whether it slept through both looks."""

    thread: ThreadFact
    look: ThreadSnapshot
    family: Family
    through: bool | None


@once
def sleepers(facts: Facts) -> tuple[Sleeper, ...]:
    """Return the threads that wait in the kernel for something that a family names, movers left out."""
    return (
        *(
            Sleeper(thread, look, kind, through)
            for thread, look, kind in first_families(facts)
            if (through := slept_through(thread)) is not False
        ),
        *_since_asked(facts),
    )


def _since_asked(facts: Facts) -> Iterator[Sleeper]:
    """Yield the main thread where it rested at first, and waits by the last look: it left a question unanswered."""
    for thread in by_role(facts, Role.MAIN) if monitor_is_dead(facts) else ():
        match looks(thread):
            case first, last if family(facts, first) is None and (kind := family(facts, last)) is not None:
                yield Sleeper(thread, last, kind, through=None)
            case _:
                pass


@once
def first_families(facts: Facts) -> tuple[tuple[ThreadFact, ThreadSnapshot, Family], ...]:
    """Return the threads that waited in the kernel for something that a family names when they were first seen."""
    return tuple(
        (thread, look, kind)
        for thread in threads(facts)
        for look in looks(thread)[:1]
        if (kind := family(facts, look)) is not None
    )


def went_on(facts: Facts, kind: Family) -> tuple[ThreadFact, ...]:
    """Return the threads that waited for it at the first look, and at the last for something else, or for nothing."""
    movers = []
    for thread in threads(facts):
        match looks(thread):
            case first, last if is_in(facts, kind, first) and not (
                is_in(facts, kind, last) and first.syscall.is_like(last.syscall)
            ):
                movers.append(thread)
            case _:
                pass
    return tuple(movers)


def is_in(facts: Facts, kind: Family, look: ThreadSnapshot) -> bool:
    """Tell whether a thread waited for that at one look."""
    its_family = family(facts, look)
    return its_family is not None and its_family.id == kind.id


def family(facts: Facts, look: ThreadSnapshot) -> Family | None:
    """Return what a thread waits for: the page cache's waits name no file system, and the file's mount does."""
    by_stack = kernel_stacks.family(look)
    if by_stack is not None and by_stack.id == kernel_stacks.POSTCOPY and any(_saves_pages(t) for t in threads(facts)):
        return kernel_stacks.family_called(kernel_stacks.SNAPSHOT)
    if by_stack is None or by_stack.id not in kernel_stacks.OF_ANY_STORAGE:
        return by_stack
    file = file_of(facts, look)
    path = file.target if file is not None else ram_file(facts, look)
    mount = mount_of(facts, path) if path else None
    return kernel_stacks.family_of_mount(mount.fstype) or by_stack if mount is not None else by_stack


def _saves_pages(thread: ThreadFact) -> bool:
    return thread.comm in SAVES_PAGES


def file_of(facts: Facts, look: ThreadSnapshot) -> Descriptor | None:
    """Return the descriptor that a thread's system call works on: its first argument in all those that matter."""
    file = descriptor(facts, look.syscall.arguments[0]) if look.syscall.arguments else None
    return file if file and file.kind in {"file", "block device"} else None


def disks_on(facts: Facts, paths: frozenset[str]) -> tuple[DiskFact, ...]:
    """Return the disks whose image lies at one of these paths."""
    if isinstance(facts.disks, Unknown) or not paths:
        return ()
    return tuple(
        disk
        for disk in facts.disks.value
        if any(node.opened in paths or _same_file(node.filename, paths) for node in disk.nodes)
    )


def disks_behind(facts: Facts, asleep: list[Sleeper]) -> tuple[DiskFact, ...]:
    """Return the disks of threads whose system call names no file: io_submit's caller, the kernel's own workers."""
    if isinstance(facts.disks, Unknown):
        return ()
    submits = any(sleeper.look.syscall.name == "io_submit" for sleeper in asleep)
    uring = any(sleeper.thread.role is Role.KERNEL for sleeper in asleep)
    engine = "native" if submits else "io_uring" if uring else ""
    parked = still(facts, *((Park.LINUX_AIO,) if submits else (Park.IO_URING,) if uring else ()))
    names = {disk.name for request in parked for disk in disks_of(facts, request)}
    using = [disk for disk in facts.disks.value if engine and any(node.aio == engine for node in disk.nodes)]
    named = [disk for disk in using if disk.name in names] or using
    still_disks = [disk for disk in named if not (isinstance(disk.completed, Known) and disk.completed.value > 0)]
    return tuple(still_disks) if len(still_disks) <= MOST_NAMED else ()


def disks_parked(facts: Facts) -> tuple[DiskFact, ...]:
    """Return the disks whose requests are in an AIO engine, for a file that no node is known by: a data file, a base.

    Where a job runs, the requests may be its own.
    """
    if isinstance(facts.jobs, Known) and facts.jobs.value:
        return ()
    alone = [disks_of(facts, request) for request in still(facts, Park.THREADS, Park.LINUX_AIO, Park.IO_URING)]
    by_name = {owners[0].name: owners[0] for owners in alone if len(owners) == 1}
    return tuple(by_name.values()) if len(by_name) <= MOST_NAMED else ()


def image_of(facts: Facts, disk: DiskFact) -> str:
    """Return where a disk's image lies, as its descriptor tells it."""
    if opened := next((node.opened for node in disk.nodes if node.opened), ""):
        return opened
    if isinstance(facts.descriptors, Unknown):
        return ""
    names = [node.filename for node in disk.nodes if node.filename and not node.filename.startswith("json:")]
    kinds = {"file", "block device"}
    open_files = [file.target for file in facts.descriptors.value if file.kind in kinds]
    return next((path for path in open_files if any(_same_file(name, frozenset({path})) for name in names)), "")


def _same_file(name: str, paths: frozenset[str]) -> bool:
    """Compare an image's name as QEMU was given it, which may be relative, with what a descriptor links to."""
    if not name or name.startswith("json:"):
        return False
    return name in paths or any(path.endswith("/" + name.removeprefix("./")) for path in paths)


@once
def device_of(facts: Facts, path: str) -> HostDevice | None:
    """Return the block device that a path is, None where it is a file: what a device's node lies on is not its data."""
    opened = facts.descriptors.value if isinstance(facts.descriptors, Known) else ()
    node = next((file for file in opened if file.target == path and file.kind == "block device"), None)
    return HostDevice(node.target.removeprefix("/dev/").removeprefix("mapper/")) if node else None


def ram_file(facts: Facts, look: ThreadSnapshot) -> str:
    """Return the file of the guest's RAM, if a thread is in a page fault and only one file can be meant."""
    if not FAULTS & set(look.kernel_stack) or isinstance(facts.vm.arguments, Unknown):
        return ""
    words = facts.vm.arguments.value
    objects = [parse(value, "qom-type") for option, value in pairwise(words) if option.lstrip("-") == "object"]
    files = [
        str(backend.get("mem-path", "")) for backend in objects if backend.get("qom-type") == "memory-backend-file"
    ]
    files += [value for option, value in pairwise(words) if option.lstrip("-") == "mem-path"]
    return files[0] if len(set(files)) == 1 else ""


@once
def mount_of(facts: Facts, path: str) -> MountFact | None:
    """Return the mount that a file is written to: by its descriptor's device, for a path can be of another root.

    An overlay keeps what is written in a folder of another file system.
    """
    mount = None if device_of(facts, path) else _mount_around(facts, path)
    upper = _mount_around(facts, mount.upper) if mount is not None and mount.upper else None
    return upper or mount


def _mount_around(facts: Facts, path: str) -> MountFact | None:
    if isinstance(facts.host.mounts, Unknown):
        return None
    mounts = facts.host.mounts.value
    opened = facts.descriptors.value if isinstance(facts.descriptors, Known) else ()
    if device := next((file.device for file in opened if file.target == path and file.device), ""):
        of_device = [mount for mount in mounts if mount.device == device]
        if len(of_device) == 1:
            return of_device[0]
        mounts = tuple(of_device) or mounts
    on = [mount for mount in mounts if path == mount.path or path.startswith(mount.path.rstrip("/") + "/")]
    return max(on, key=lambda mount: len(mount.path), default=None)
