"""QEMU's known bugs by signature: they tell whether this build has the fix, and never decide a verdict."""

from __future__ import annotations

import re
from typing import Literal

from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import KnownBug
from autopsy.facts.model.facts import Facts

Version = tuple[int, int, int]
VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?")
# A distribution carries fixes of its own under an old number: then the number cannot tell.
DISTRIBUTION = re.compile(r"el\d|pve|ubuntu|dfsg|\.fc\d|suse", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug. `affected` are ranges of releases, first to last; `fixed` each branch's first release with the fix.

    `link` is empty where no thread is known: the project's own address would tell nothing.
    """

    signatures: tuple[str, ...]
    title: str
    link: str
    affected: tuple[tuple[Version, Version], ...]
    fixed: tuple[Version, ...]
    builds: str = ""


LATEST: Version = (999, 0, 0)
GIT = "https://gitlab.com/qemu-project/qemu/-/commit/"

BUGS = (
    Bug(
        ("throttle-lock-self-deadlock",),
        "block/throttle-groups: deadlock with I/O limits and several iothreads",
        "https://gitlab.com/qemu-project/qemu/-/issues/3144",
        (((9, 0, 0), (10, 0, 8)), ((10, 1, 0), (10, 1, 999)), ((10, 2, 0), (10, 2, 1))),
        ((10, 0, 9), (10, 2, 2), (11, 0, 0)),
        "Proxmox: pve-qemu 10.2.1-1 carries the fix",
    ),
    Bug(
        ("throttle-lost-timer",),
        "throttle-group: race condition in throttle_group_restart_queue() (ends in an abort, not in a hang)",
        "",
        (((9, 0, 0), (10, 0, 9)), ((10, 1, 0), (10, 2, 2))),
        ((10, 0, 10),),
    ),
    Bug(
        ("throttle-lost-timer",),
        "throttle: a drain could leave a queue without its timer",
        GIT + "dc868fb03b9b",
        (((2, 10, 0), (2, 11, 999)),),
        ((2, 12, 0),),
    ),
    Bug(
        ("throttle-stale-timer",),
        "throttle_group_set_limits() does not restart what waits already",
        "",
        (((2, 11, 0), LATEST),),
        (),
        "no release restarts the members of a throttle-group object when its limits change",
    ),
    Bug(
        ("lsi-reentrancy-leak",),
        "lsi53c895a: the reentrancy counter leaks",
        GIT + "8b09b7fe47",
        (((7, 2, 3), (7, 2, 10)), ((8, 0, 1), (8, 1, 999)), ((8, 2, 0), (8, 2, 1))),
        ((7, 2, 11), (8, 2, 2), (9, 0, 0)),
    ),
    Bug(
        ("lsi-reselect-lost",),
        "lsi53c895a: a phase mismatch resumes a stopped script; the spin limit",
        GIT + "a9198b3132",
        (((0, 12, 0), (7, 2, 10)), ((8, 0, 0), (8, 2, 999))),
        ((7, 2, 11), (9, 0, 0)),
    ),
    Bug(
        ("ide-trim-drain-deadlock",),
        "ide: a TRIM and a drain wait for each other",
        GIT + "095c08a7ba",
        (((7, 0, 0), (10, 0, 9)), ((10, 1, 0), (11, 0, 999))),
        ((10, 0, 10), (11, 1, 0)),
        "Proxmox carries a fix of its own",
    ),
    Bug(
        ("virtio-scsi-tmf-deadlock",),
        "virtio-scsi: task management takes requests_lock twice",
        GIT + "6910f04aa646",
        (((10, 0, 0), (10, 0, 6)), ((10, 1, 0), (10, 1, 2))),
        ((10, 0, 7), (10, 1, 3), (10, 2, 0)),
    ),
    Bug(
        ("virtqueue-notify-off",),
        "virtio: notifications stay off after a drain in polling mode",
        GIT + "5bdbaebcce",
        (((8, 1, 0), (8, 2, 1)),),
        ((8, 2, 2), (9, 0, 0)),
        "RHEL-3934",
    ),
    Bug(
        ("lock-cycle", "main-loop-nested-poll"),
        "virtio-blk: a completion takes the BQL while stop drains",
        GIT + "bfa36802d1",
        (((8, 1, 0), (8, 2, 1)),),
        ((8, 2, 2), (9, 0, 0)),
    ),
    Bug(
        ("graph-lock-deadlock",),
        "block: do not drain while holding the graph lock",
        "",
        (((8, 0, 0), (10, 0, 999)),),
        ((10, 1, 0),),
        "Proxmox 8.1 switched the graph lock off",
    ),
    Bug(
        ("graph-lock-deadlock", "main-loop-nested-poll"),
        "graph lock: a missed wake-up in bdrv_graph_wrlock()",
        GIT + "e3082ab3b385",
        (((8, 0, 0), (10, 0, 9)), ((10, 1, 0), (11, 0, 0))),
        ((10, 0, 10), (11, 1, 0)),
    ),
    Bug(
        ("serialising-wait",),
        "block/io: take reqs_lock for tracked_requests",
        "",
        (((7, 2, 0), (10, 0, 6)),),
        ((10, 0, 7),),
    ),
    Bug(
        ("aio-never-submitted",),
        "linux-aio: a leaked plug keeps requests in the queue",
        GIT + "f387cac5af03",
        (((6, 2, 0), (7, 0, 999)),),
        ((7, 1, 0),),
    ),
    Bug(
        ("aio-never-submitted",),
        "io_uring: a resubmitted request is not submitted",
        GIT + "2bb0153cd8",
        (((5, 0, 0), (10, 0, 6)), ((10, 1, 0), (10, 1, 999))),
        ((10, 0, 7), (10, 2, 0)),
        "Proxmox: pve-qemu 10.1.2-5",
    ),
    Bug(
        ("aio-never-submitted",),
        "io_uring: requests of vCPU threads wait up to half a second to be submitted (slow, not dead)",
        GIT + "2ae361ef1d7d",
        (((10, 2, 0), (10, 2, 1)),),
        ((10, 2, 2),),
    ),
    Bug(
        ("aio-completed-not-reaped", "aio-done-not-completed", "virtqueue-kick-lost"),
        "aio: notifications lost between threads (memory barriers in async, aio-wait, CoMutex, QemuEvent)",
        "",
        (((2, 0, 0), (7, 2, 999)),),
        ((8, 0, 0),),
        "mostly seen on ARM; async: access bottom half flags with qatomic_read in 7.2.22 and 10.0.6",
    ),
    Bug(
        ("vm-io-error",),
        "block: a rate-limited BLOCK_IO_ERROR event is dropped although the VM was paused",
        "",
        (((5, 0, 0), (10, 0, 8)), ((10, 1, 0), (10, 2, 1))),
        ((10, 0, 9), (10, 2, 2)),
    ),
    Bug(
        ("backup-holds-writes",),
        "copy-before-write: cbw-timeout overflows",
        "",
        (((7, 1, 0), (8, 2, 999)),),
        ((9, 0, 0),),
        "Proxmox carries the fix (51232e2)",
    ),
    Bug(
        ("rcu-drain-wait",),
        "drain_call_rcu() with the BQL held waits for readers that need it",
        GIT + "012b170173",
        (((5, 2, 0), (7, 2, 10)), ((8, 0, 0), (8, 1, 999))),
        ((7, 2, 11), (8, 2, 0)),
    ),
    Bug(
        ("mutex-self-deadlock",),
        "vnc: the output lock is taken twice",
        GIT + "1dbbe6f17281",
        (((2, 0, 0), (6, 2, 999)),),
        ((7, 0, 0),),
    ),
)


def about(signature: str, facts: Facts) -> tuple[KnownBug, ...]:
    """Return the known bugs that show this signature, with what this build's version says of each."""
    return tuple(_told(bug, facts.vm.qemu_version) for bug in BUGS if signature in bug.signatures)


def version_of(text: str) -> Version | None:
    """Return the first thing in a text that looks like QEMU's version."""
    version = VERSION.search(text)
    return (int(version[1]), int(version[2]), int(version[3] or 0)) if version else None


def has(bug: Bug, text: str) -> Literal["fixed", "affected", "not affected", "cannot tell"]:
    """Say what a version's number tells of a bug; a distribution's own number tells less."""
    version = version_of(text)
    if version is None:
        return "cannot tell"
    if any(first <= version <= last for first, last in bug.affected):
        return "affected"
    return "fixed" if any(version >= first for first in bug.fixed) else "not affected"


def _told(bug: Bug, text: str) -> KnownBug:
    verdict = has(bug, text)
    fixed = tuple(".".join(map(str, version)) for version in bug.fixed)
    affected = ", ".join(_range(first, last) for first, last in bug.affected)
    number = version_of(text)
    build = ".".join(map(str, number)) if number else "of unknown version"
    words = {
        "fixed": f"this build is {build} and has the fix",
        "affected": f"this build is {build}, which has the bug",
        "not affected": f"this build is {build}, from before the bug",
        "cannot tell": "this build's version is not known",
    }[verdict]
    if verdict == "affected" and DISTRIBUTION.search(text):
        words += ", unless its distribution carries the fix"
    where = f"fixed in {', '.join(fixed)}" if fixed else "fixed in no release"
    build_words = f" {bug.builds[0].upper()}{bug.builds[1:]}." if bug.builds else ""
    return KnownBug(
        title=bug.title,
        link=bug.link,
        affected=affected,
        fixed_in=fixed,
        in_this_build=verdict,
        sentence=f"{bug.title}: {where}; {words}.{build_words}",
    )


def _range(first: Version, last: Version) -> str:
    low = ".".join(map(str, first))
    if last == LATEST:
        return f"since {low}"
    high = f"{last[0]}.{last[1]}.x" if last[2] == 999 else ".".join(map(str, last))
    return f"{low} to {high}"
