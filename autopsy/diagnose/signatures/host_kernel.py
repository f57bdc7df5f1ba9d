"""Threads that sleep in the host's kernel for storage, memory or a network file system: one signature a family."""

from __future__ import annotations

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Claim
from autopsy.diagnose.once import once
from autopsy.diagnose.queries import kernel_stacks, naming
from autopsy.diagnose.queries.below import Below, about_devices, below, is_stopped, own_daemons
from autopsy.diagnose.queries.host_log import lines_about
from autopsy.diagnose.queries.kernel_sleepers import (
    MOST_NAMED,
    Sleeper,
    device_of,
    disks_behind,
    disks_on,
    disks_parked,
    file_of,
    first_families,
    image_of,
    mount_of,
    ram_file,
    sleepers,
    went_on,
)
from autopsy.diagnose.queries.kernel_stacks import Family
from autopsy.diagnose.queries.limits import memory_limits
from autopsy.diagnose.queries.peers.programs import about_chain, asked_in_turn, why_silent
from autopsy.diagnose.queries.requests import (
    Standing,
    confidence,
    monitor_is_dead,
    standing,
    title,
)
from autopsy.diagnose.queries.socket_peers import about_itself
from autopsy.diagnose.queries.threads import looks, named, threads
from autopsy.diagnose.queries.wording import count
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.model.facts import Descriptor, DiskFact, Facts, FuseMount, Origin, PeerFact, Role, ThreadSnapshot
from autopsy.facts.model.yield_points import DISK_PARKS


def _judge(kind: Family, facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the kernel stacks of QEMU's threads (evidence/witness/tasks.txt)")
    asleep = [sleeper for sleeper in sleepers(facts) if sleeper.family.id == kind.id]
    if not asleep:
        return _not_seen(kind, facts)
    once = facts.origin is Origin.CAPTURE and all(sleeper.through is None for sleeper in asleep)
    if kind.passes and once and not _stands(facts):
        return CannotTell(f"a second look: {count(len(asleep), 'thread')} waited for {kind.words} at the only one")
    files = {sleeper.thread.tid: file_of(facts, sleeper.look) for sleeper in asleep}
    paths = frozenset(file.target for file in files.values() if file is not None) | _opening(facts, asleep)
    ram = frozenset(filter(None, (ram_file(facts, sleeper.look) for sleeper in asleep)))
    disks = disks_on(facts, paths)
    if not disks and not (ram or _of_another_node(facts, paths)):
        disks = disks_parked(facts) if paths else disks_behind(facts, asleep)
    paths = paths | ram or frozenset(path for disk in disks if (path := image_of(facts, disk)))
    devices = tuple(dict.fromkeys(device for path in sorted(paths) if (device := device_of(facts, path)) is not None))
    mounts = {mount.path: mount for path in paths if (mount := mount_of(facts, path)) is not None}
    through = any(sleeper.through for sleeper in asleep)
    answers = _answers(facts, kind, disks) if kind.passes else ()
    daemons = _daemons(facts, frozenset(mounts)) if kind.id == "fuse-daemon-silent" else ()
    where = [f"{mount.path} ({mount.fstype} on {mount.source})" for mount in mounts.values()]
    where = [*where, *map(naming.name, devices)] or sorted(paths)
    where += [f"the guest's RAM in {path}" for path in sorted(ram)]
    limits = memory_limits.reached(facts)[:MOST_NAMED] if kind.id == memory_limits.MEMORY else ()
    where = [*map(memory_limits.in_words, limits), *where]
    return Match(
        headline=_headline(kind, asleep, where, tuple(title(disk) for disk in disks), answers)
        + (about_itself(facts, daemons) or (f": {why_silent(daemons)}" if asked_in_turn(daemons) else "")),
        objects=(
            *(subjects.disk(disk) for disk in disks),
            *(subjects.file_system(mount) for mount in mounts.values()),
            *devices,
            *(subjects.File(path) for path in sorted(ram)),
            *(subjects.ControlGroup(limit.group) for limit in limits),
            *(subjects.peer(daemon) for daemon in (*daemons, *asked_in_turn(daemons)[:1])),
            *(subjects.thread(sleeper.thread) for sleeper in asleep[:MOST_NAMED]),
        ),
        confidence="proven" if through and not answers else "likely",
        claims=(
            *_claims(kind, asleep, files, through=through),
            *answers,
            *memory_limits.about(limits),
            *about_devices(facts, devices),
            *(claim(f"The host's log says: {line.text}", line.cite) for line in lines_about(facts, mounts.values())),
            *(
                claim(
                    f"The daemon is {daemon.comm} {daemon.pid}, State {daemon.state or 'unknown'}"
                    f"{f', in {daemon.wchan}' if daemon.wchan else ''}.",
                    daemon.cite,
                )
                for daemon in daemons
            ),
            *(step for daemon in daemons for step in about_chain(daemon)),
        ),
        stands=(
            subjects.Kernel(kind.id),
            *(subjects.Kernel(kind.id, name) for name in (*mounts, *(host_device.name for host_device in devices))),
        ),
        weight=len(asleep),
    )


def _of_another_node(facts: Facts, paths: frozenset[str]) -> bool:
    """Tell whether a node that no disk has is known by one of these files: a firmware's variables, a job's target."""
    return any(path in paths for node in facts.nodes for path in (node.filename, node.opened) if path)


def _answers(facts: Facts, kind: Family, disks: tuple[DiskFact, ...]) -> tuple[Claim, ...]:
    """Say what shows that it is slow, and not dead: meanwhile others that waited for the same were served."""
    claims = []
    if moved := went_on(facts, kind):
        words = f"{count(len(moved), 'thread')} that waited for {kind.words}, too, went on meanwhile"
        claims.append(claim(f"{words}: it is slow, and not dead.", *(looks(thread)[-1].cite for thread in moved[:4])))
    claims += [
        claim(f"Disk {title(disk)} completed {count(disk.completed.value, 'request')} meanwhile.", disk.completed.cite)
        for disk in disks[:MOST_NAMED]
        if kind.only_requests and isinstance(disk.completed, Known) and disk.completed.value > 0
    ]
    return tuple(claims)


def _opening(facts: Facts, asleep: list[Sleeper]) -> frozenset[str]:
    """Return the file that the main thread is about to open, where it is one of those that wait."""
    if isinstance(facts.main_loop, Unknown) or all(sleeper.thread.role is not Role.MAIN for sleeper in asleep):
        return frozenset()
    return frozenset(filter(None, [facts.main_loop.value.path]))


def _daemons(facts: Facts, paths: frozenset[str]) -> tuple[PeerFact, ...]:
    """Return the programs that should answer for these FUSE mounts."""
    if isinstance(facts.fuse, Unknown):
        return ()
    here = [mount for mount in facts.fuse.value if mount.path in paths or not paths]
    return tuple(daemon for mount in here if mount.sure or len(mount.daemons) == 1 for daemon in mount.daemons)[:3]


def _stands(facts: Facts) -> bool:
    """Tell whether something else shows that requests stand: a dead monitor, or a parked request seen twice."""
    waiting = standing(facts, DISK_PARKS)
    return monitor_is_dead(facts) or (isinstance(waiting, Standing) and waiting.proven)


def _headline(
    kind: Family, asleep: list[Sleeper], where: list[str], disks: tuple[str, ...], answers: tuple[Claim, ...]
) -> str:
    place = f": {', '.join(where[:2])}" if where else ""
    whose = f" ({', '.join(disks[:3])})" if disks else ""
    verb = "waits" if len(asleep) == 1 else "wait"
    slow = ", and others go on: it is slow" if answers else ""
    return f"{count(len(asleep), 'thread')} of QEMU {verb} for {kind.words}{place}{whose}{slow}"


def _claims(kind: Family, asleep: list[Sleeper], files: dict[int, Descriptor | None], *, through: bool) -> list[Claim]:
    claims = []
    for sleeper in asleep[:MOST_NAMED]:
        file = files[sleeper.thread.tid]
        on = f" on {file.target}" if file else ""
        cites = [sleeper.look.cite, sleeper.look.stack_cite] + ([file.cite] if file else [])
        claims.append(
            claim(
                f"{named(sleeper.thread)} is in {sleeper.look.syscall.name or 'the kernel'}{on}, "
                f"State {sleeper.look.state}, under {kernel_stacks.deepest(sleeper.look, kind)}.",
                *cites,
            )
        )
    if len(asleep) > MOST_NAMED:
        claims.append(
            claim(f"{len(asleep) - MOST_NAMED} more threads sleep there too.", *(f.look.cite for f in asleep[4:8]))
        )
    if through:
        slept = [sleeper for sleeper in asleep if sleeper.through]
        again = [sleeper.thread.again.value.cite for sleeper in slept if isinstance(sleeper.thread.again, Known)]
        claims.append(
            claim(f"{count(len(slept), 'thread')} slept through from the first look to the last.", *again[:4])
        )
    return claims


def _not_seen(kind: Family, facts: Facts) -> Judgement:
    if not isinstance(seen := _told_of(facts), _Told):
        return seen
    if moved := [look for look, its_kind in seen.moved if its_kind == kind.id]:
        words = f"{count(len(moved), 'thread')} waited for {kind.words}, and went on"
        return RuledOut(words, tuple(look.cite for look in moved[:4]))
    return RuledOut(f"none of {seen.threads} waits for {kind.words}", seen.cites)


@dataclass(frozen=True, slots=True)
class _Told:
    """Of how many threads something is known, and which of them waited at first, each with its family's name."""

    threads: str
    moved: tuple[tuple[ThreadSnapshot, str], ...]
    cites: tuple[Cite, ...]


@once
def _told_of(facts: Facts) -> _Told | CannotTell:
    """Return what is known of threads that do not wait: each family asks, and all but its name is the same."""
    seen = [look for thread in threads(facts) for look in looks(thread)[:1]]
    if not seen:
        return CannotTell("the kernel stacks of QEMU's threads (evidence/witness/tasks.txt)")
    if any(look.state == "D" and not look.kernel_stack and not look.wchan for look in seen):
        return CannotTell("the kernel stacks of the threads in State D (reading them needs root)")
    moved = tuple((look, family.id) for _, look, family in first_families(facts))
    cites = (facts.threads.cite,) if isinstance(facts.threads, Known) else ()
    return _Told(count(len(seen), "thread"), moved, cites)


def _below(facts: Facts) -> Judgement:
    if isinstance(facts.threads, Unknown):
        return CannotTell("the kernel stacks of QEMU's threads (evidence/witness/tasks.txt)")
    silent = [
        (sleeper, way, served)
        for sleeper in sleepers(facts)
        if (file := file_of(facts, sleeper.look)) is not None
        and (mount := mount_of(facts, file.target)) is not None
        and (way := below(facts, mount)).holds
        and (served := way.served) is not None
    ]
    if not silent:
        why = "no thread waits for a file system that lies on another one that a program serves"
        return RuledOut(why, (facts.threads.cite,))
    return _below_match(facts, [sleeper for sleeper, _, _ in silent], silent[0][1], silent[0][2])


def _below_match(facts: Facts, asleep: list[Sleeper], way: Below, served: FuseMount) -> Match:
    daemons = own_daemons(served)
    paths = frozenset(file.target for sleeper in asleep if (file := file_of(facts, sleeper.look)) is not None)
    disks = disks_on(facts, paths)
    stopped = is_stopped(served)
    who = f", which {daemons[0].comm} {daemons[0].pid} serves" if daemons else ""
    whose = f" ({', '.join(map(title, disks[:3]))})" if disks else ""
    verb = "waits" if len(asleep) == 1 else "wait"
    return Match(
        headline=f"{count(len(asleep), 'thread')} of QEMU {verb} for storage that lies in {way.layers[-1].file}{who}"
        f"{', and is stopped' if stopped else ''}{whose}",
        objects=(
            *map(subjects.disk, disks),
            *map(subjects.peer, daemons[:3]),
            subjects.file_system(way.layers[-1].mount),
            *(subjects.HostDevice(layer.loop) for layer in way.layers),
        ),
        confidence=confidence(proven=stopped and any(sleeper.through for sleeper in asleep)),
        claims=(
            claim(f"{named(asleep[0].thread)} waits for {asleep[0].family.words}.", asleep[0].look.stack_cite),
            *(
                claim(
                    f"Block device {layer.loop} keeps its data in {layer.file}, on {layer.mount.path} "
                    f"({layer.mount.fstype}).",
                    layer.cite,
                )
                for layer in way.layers
            ),
            *(
                (claim(f"{count(served.waiting, 'request')} waited at that FUSE file system.", served.cite),)
                if served.waiting
                else ()
            ),
            *(
                claim(f"Its daemon is {daemon.comm} {daemon.pid}, State {daemon.state}.", daemon.cite)
                for daemon in daemons[:3]
            ),
        ),
        weight=len(asleep),
    )


def _signature(kind: Family) -> Signature:
    return Signature(kind.id, kind.where, kind.title, lambda facts: _judge(kind, facts))


BELOW = Signature("storage-below-silent", "peer", "a program that serves the storage below does not answer", _below)
SIGNATURES = (BELOW, *(_signature(kind) for kind in kernel_stacks.FAMILIES))
