"""Threads that sleep in the host's kernel for storage, memory or a network file system: one signature a family."""

from __future__ import annotations

from dataclasses import dataclass

from autopsy.diagnose import kernel_stacks
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.judgement import (
    CannotTell,
    Judgement,
    Match,
    RuledOut,
    Signature,
    claim,
)
from autopsy.diagnose.kernel_stacks import Family
from autopsy.diagnose.seen import (
    Standing,
    count,
    descriptor,
    disks_of,
    looks,
    monitor_is_dead,
    named,
    slept_through,
    standing,
    still,
    thread_subjects,
    threads,
    title,
)
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.coroutines import DISK_PARKS
from autopsy.facts.model import Descriptor, Disk, Exposure, Facts, Mount, Park, Peer, Role, Thread
from autopsy.facts.subjects import Subject, Whole

MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A thread that waits in the kernel, and whether it slept through both looks."""

    thread: Thread
    look: Exposure
    family: Family
    through: bool | None


def sleepers(facts: Facts) -> tuple[Sleeper, ...]:
    """Return the threads that wait in the kernel for something that a family names, movers left out."""
    found = []
    for thread in threads(facts):
        for look in looks(thread)[:1]:
            kind = kernel_stacks.family(look)
            if kind is None:
                continue
            through = slept_through(thread)
            if through is not False:
                found.append(Sleeper(thread, look, kind, through))
    return tuple(found)


def file_of(facts: Facts, look: Exposure) -> Descriptor | None:
    """Return the descriptor that a thread's system call works on: its first argument in all those that matter."""
    found = descriptor(facts, look.syscall.arguments[0]) if look.syscall.arguments else None
    return found if found and found.kind in {"file", "block device"} else None


def disks_on(facts: Facts, paths: frozenset[str]) -> tuple[Disk, ...]:
    """Return the disks whose image lies at one of these paths."""
    if isinstance(facts.disks, Unknown) or not paths:
        return ()
    return tuple(disk for disk in facts.disks.value if any(_same_file(node.filename, paths) for node in disk.nodes))


def disks_behind(facts: Facts, found: list[Sleeper]) -> tuple[Disk, ...]:
    """Return the disks of threads whose system call names no file: io_submit's caller, the kernel's own workers."""
    if isinstance(facts.disks, Unknown):
        return ()
    submits = any(each.look.syscall.name == "io_submit" for each in found)
    uring = any(each.thread.role is Role.KERNEL for each in found)
    engine = "native" if submits else "io_uring" if uring else ""
    parked = still(facts, *((Park.LINUX_AIO,) if submits else (Park.IO_URING,) if uring else ()))
    names = {disk.name for request in parked for disk in disks_of(facts, request)}
    using = [disk for disk in facts.disks.value if engine and any(node.aio == engine for node in disk.nodes)]
    named = [disk for disk in using if disk.name in names] or using
    still_disks = [disk for disk in named if not (isinstance(disk.completed, Known) and disk.completed.value > 0)]
    return tuple(still_disks) if len(still_disks) <= MOST_NAMED else ()


def disks_parked(facts: Facts) -> tuple[Disk, ...]:
    """Return the disks whose requests are in an AIO engine, for a file that no node is known by: a data file, a base.

    Where a job runs, the requests may be its own.
    """
    if isinstance(facts.jobs, Known) and facts.jobs.value:
        return ()
    alone = [disks_of(facts, request) for request in still(facts, Park.THREADS, Park.LINUX_AIO, Park.IO_URING)]
    found = {each[0].name: each[0] for each in alone if len(each) == 1}
    return tuple(found.values()) if len(found) <= MOST_NAMED else ()


def image_of(facts: Facts, disk: Disk) -> str:
    """Return where a disk's image lies, as its descriptor tells it."""
    if isinstance(facts.descriptors, Unknown):
        return ""
    names = [node.filename for node in disk.nodes if node.filename and not node.filename.startswith("json:")]
    kinds = {"file", "block device"}
    open_files = [each.target for each in facts.descriptors.value if each.kind in kinds]
    return next((path for path in open_files if any(_same_file(name, frozenset({path})) for name in names)), "")


def _same_file(name: str, paths: frozenset[str]) -> bool:
    """Compare an image's name as QEMU was given it, which may be relative, with what a descriptor links to."""
    if not name or name.startswith("json:"):
        return False
    return name in paths or any(path.endswith("/" + name.removeprefix("./")) for path in paths)


def mount_of(facts: Facts, path: str) -> Mount | None:
    """Return the mount that a path lies on."""
    if isinstance(facts.host.mounts, Unknown):
        return None
    on = [
        mount
        for mount in facts.host.mounts.value
        if path == mount.path or path.startswith(mount.path.rstrip("/") + "/")
    ]
    return max(on, key=lambda mount: len(mount.path), default=None)


def _judge(kind: Family, facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the kernel stacks of QEMU's threads (evidence/witness/tasks.txt)")
    found = [each for each in sleepers(facts) if each.family.id == kind.id]
    if not found:
        return _not_seen(kind, facts)
    if kind.passes and all(each.through is None for each in found) and not _stands(facts):
        return CannotTell(f"a second look: {count(len(found), 'thread')} waited for {kind.words} at the only one")
    files = {each.thread.tid: file_of(facts, each.look) for each in found}
    paths = frozenset(file.target for file in files.values() if file is not None) | _opening(facts, found)
    disks = disks_on(facts, paths) or disks_parked(facts) if paths else disks_behind(facts, found)
    paths = paths or frozenset(path for disk in disks if (path := image_of(facts, disk)))
    mounts = {mount.path: mount for path in paths if (mount := mount_of(facts, path)) is not None}
    proven = any(each.through for each in found)
    tids = [each.thread.tid for each in found]
    held: set[Subject | Whole] = {*kind.holds, *thread_subjects(facts, tids), *(subjects.disk(disk) for disk in disks)}
    if kind.only_requests:
        held.add(Whole.REQUESTS)
    daemons = _daemons(facts, frozenset(mounts)) if kind.id == "fuse-daemon-silent" else ()
    where = [f"{mount.path} ({mount.fstype} on {mount.source})" for mount in mounts.values()] or sorted(paths)
    return Match(
        headline=_headline(kind, found, where, tuple(title(disk) for disk in disks)),
        objects=(
            *(subjects.disk(disk) for disk in disks),
            *(subjects.file_system(mount) for mount in mounts.values()),
            *(subjects.peer(daemon) for daemon in daemons),
            *(subjects.thread(each.thread) for each in found[:MOST_NAMED]),
        ),
        confidence="proven" if proven else "likely",
        claims=(
            *_claims(facts, kind, found, files, proven=proven),
            *(
                claim(
                    f"The daemon is {daemon.comm} {daemon.pid}, State {daemon.state or 'unknown'}"
                    f"{f', in {daemon.wchan}' if daemon.wchan else ''}.",
                    daemon.cite,
                )
                for daemon in daemons
            ),
        ),
        holds=frozenset(held),
        waits_for=frozenset({Whole.IO_LIMIT} if kind.id == "host-block-wait" else ()),
        weight=len(found),
    )


def _opening(facts: Facts, found: list[Sleeper]) -> frozenset[str]:
    """Return the file that the main thread is about to open, where it is one of those that wait."""
    if isinstance(facts.main_loop, Unknown) or all(each.thread.role is not Role.MAIN for each in found):
        return frozenset()
    return frozenset(filter(None, [facts.main_loop.value.path]))


def _daemons(facts: Facts, paths: frozenset[str]) -> tuple[Peer, ...]:
    """Return the programs that should answer for these FUSE mounts."""
    if isinstance(facts.fuse, Unknown):
        return ()
    here = [mount for mount in facts.fuse.value if mount.path in paths or not paths]
    return tuple(daemon for mount in here if mount.sure or len(mount.daemons) == 1 for daemon in mount.daemons)[:3]


def _stands(facts: Facts) -> bool:
    """Tell whether something else shows that requests stand: a dead monitor, or a parked request seen twice."""
    waiting = standing(facts, DISK_PARKS)
    return monitor_is_dead(facts) or (isinstance(waiting, Standing) and waiting.proven)


def _headline(kind: Family, found: list[Sleeper], where: list[str], disks: tuple[str, ...]) -> str:
    place = f": {', '.join(where[:2])}" if where else ""
    whose = f" (disk {', '.join(disks[:3])})" if disks else ""
    verb = "waits" if len(found) == 1 else "wait"
    return f"{count(len(found), 'thread')} of QEMU {verb} for {kind.words}{place}{whose}"


def _claims(
    facts: Facts, kind: Family, found: list[Sleeper], files: dict[int, Descriptor | None], *, proven: bool
) -> list[Claim]:
    claims = []
    for each in found[:MOST_NAMED]:
        file = files[each.thread.tid]
        on = f" on {file.target}" if file else ""
        cites = [each.look.cite, each.look.stack_cite] + ([file.cite] if file else [])
        claims.append(
            claim(
                f"{named(each.thread)} is in {each.look.syscall.name or 'the kernel'}{on}, State {each.look.state}, "
                f"under {kernel_stacks.deepest(each.look, kind)}.",
                *cites,
            )
        )
    if len(found) > MOST_NAMED:
        claims.append(
            claim(f"{len(found) - MOST_NAMED} more threads sleep there too.", *(f.look.cite for f in found[4:8]))
        )
    if proven:
        through = [each for each in found if each.through]
        again = [each.thread.again.value.cite for each in through if isinstance(each.thread.again, Known)]
        claims.append(
            claim(f"{count(len(through), 'thread')} slept through from the first look to the last.", *again[:4])
        )
    claims += [claim(f"The host's log says: {line.text}", line.cite) for line in facts.host.log[-2:]]
    return claims


def _not_seen(kind: Family, facts: Facts) -> Judgement:
    seen = [look for thread in threads(facts) for look in looks(thread)[:1]]
    if not seen:
        return CannotTell("the kernel stacks of QEMU's threads (evidence/witness/tasks.txt)")
    blind = [look for look in seen if look.state == "D" and not look.kernel_stack and not look.wchan]
    if blind:
        return CannotTell("the kernel stacks of the threads in State D (reading them needs root)")
    cites: tuple[Cite, ...] = (facts.threads.cite,) if isinstance(facts.threads, Known) else ()
    moved = [thread for thread in threads(facts) for look in looks(thread)[:1] if _is(kind, look)]
    if moved:
        words = f"{count(len(moved), 'thread')} waited for {kind.words}, and went on"
        return RuledOut(words, tuple(look.cite for thread in moved[:4] for look in looks(thread)[:1]))
    return RuledOut(f"none of {count(len(seen), 'thread')} waits for {kind.words}", cites)


def _is(kind: Family, look: Exposure) -> bool:
    found = kernel_stacks.family(look)
    return found is not None and found.id == kind.id


def _signature(kind: Family) -> Signature:
    return Signature(kind.id, kind.where, kind.title, lambda facts: _judge(kind, facts))


SIGNATURES = tuple(_signature(kind) for kind in kernel_stacks.FAMILIES)
