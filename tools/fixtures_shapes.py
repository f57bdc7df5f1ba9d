"""The shapes of fixtures/: which QEMU, how it is wedged, and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import fixtures_guests as guests
import fixtures_storage as storage
import fixtures_wedges as wedges

from support import lab
from support.wedged import starts
from support.wedged import wedges as live
from support.wedged import wedges_disks as live_disks

OLD, NEW, DEBUG = "7.2", "10.0.2", "10.0.2-debug"
SetUp = Callable[[lab.Build], AbstractContextManager[lab.Machine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One stored case. `not_these` look alike and must be ruled out; `why` says why the answer is this one."""

    what: str
    build: str
    set_up: SetUp
    how: str
    where: str
    signature: str
    why: str = ""
    not_these: tuple[str, ...] = ()
    gap: float = 2.0
    unpacked: bool = False

    @property
    def name(self) -> str:
        return f"{self.what}-{self.build}"


def on(builds: tuple[str, ...], what: str, set_up: SetUp, **more: object) -> tuple[Shape, ...]:
    """Return the same shape on several QEMUs; its `how` is the docstring of what sets it up."""
    how = " ".join((set_up.__doc__ or "").split())
    return tuple(Shape(what=what, build=build, set_up=set_up, how=how, **more) for build in builds)  # type: ignore[arg-type]  # the keywords are Shape's


STOPS = ("process-stopped", "cgroup-frozen", "vm-paused")
HUNG = ("healthy", "process-stopped", "cgroup-frozen")

SHAPES: tuple[Shape, ...] = (
    # Throttling.
    *on(
        (NEW, DEBUG),
        "throttle-deadlock",
        guests.throttle_deadlock,
        where="throttle",
        signature="throttle-lock-self-deadlock",
        why="an iothread waits for the throttle group's mutex that it holds itself (QEMU issue 3144)",
        not_these=("healthy", "aio-in-kernel", "host-fs-frozen"),
    ),
    *on(
        (OLD, NEW),
        "lsi-throttle",
        guests.lsi_throttle,
        where="throttle",
        signature="throttle-timer-wait",
        why="the requests are parked below the device model and above the engine: it is neither of them",
        not_these=("healthy", "throttle-lock-self-deadlock", "aio-in-kernel", "monitor-unanswered"),
    ),
    *on(
        (OLD,),
        "throttle-timer",
        wedges.throttle_timer,
        where="throttle",
        signature="throttle-timer-wait",
        not_these=("healthy", "throttle-lock-self-deadlock"),
        unpacked=True,
    ),
    *on(
        (NEW, DEBUG),
        "throttle-node",
        wedges.throttle_node,
        where="throttle",
        signature="throttle-timer-wait",
        not_these=("healthy", "throttle-lock-self-deadlock"),
    ),
    *on(
        (DEBUG,),
        "throttle-stale",
        wedges.throttle_stale,
        where="throttle",
        signature="throttle-stale-timer",
        why="the limit that the timer was set by is long gone",
        not_these=("healthy", "throttle-timer-wait"),
    ),
    *on(
        (OLD,),
        "throttled-going-on",
        guests.throttled_going_on,
        where="none",
        signature="healthy",
        why="slow on purpose is not stuck",
        not_these=("throttle-timer-wait", "throttle-lock-self-deadlock"),
        gap=3.0,
    ),
    *on(
        (NEW, DEBUG),
        "throttled-one-iothread",
        guests.throttled_one_iothread,
        where="none",
        signature="healthy",
        why="one iothread cannot come into the throttle group's self-deadlock",
        not_these=("throttle-timer-wait", "throttle-lock-self-deadlock"),
        gap=3.0,
    ),
    *on(
        (NEW,),
        "throttled-writes",
        guests.throttled_writes,
        where="throttle",
        signature="throttle-timer-wait",
        why="the reads that flow say nothing about the writes",
        not_these=("healthy", "throttle-lock-self-deadlock"),
    ),
    # Nothing is wrong with the disks.
    *on((OLD, NEW, DEBUG), "healthy-idle", wedges.healthy_idle, where="none", signature="healthy", not_these=STOPS),
    *on((OLD,), "healthy-writer", wedges.healthy_writer, where="none", signature="healthy", not_these=STOPS),
    *on(
        (NEW, DEBUG),
        "healthy-busy",
        guests.healthy_busy,
        where="none",
        signature="healthy",
        not_these=("throttle-timer-wait", "aio-in-kernel", "guest-spins"),
    ),
    *on(
        (NEW,),
        "healthy-vcpu-burns",
        guests.vcpu_burns,
        where="none",
        signature="healthy",
        why="a vCPU at 100 % says nothing while its disks complete requests",
        not_these=("guest-spins", "main-loop-spins"),
        gap=4.0,
    ),
    *on(
        (OLD,),
        "guest-spins",
        wedges.guest_spins,
        where="guest",
        signature="guest-spins",
        why="QEMU owes the guest nothing",
        not_these=("throttle-timer-wait", "aio-in-kernel", "main-loop-spins"),
        gap=4.0,
    ),
    *on(
        (DEBUG,),
        "guest-spins-linux",
        guests.guest_spins,
        where="guest",
        signature="guest-spins",
        not_these=("throttle-timer-wait", "aio-in-kernel", "main-loop-spins"),
        gap=4.0,
    ),
    *on((NEW,), "guest-panicked", guests.guest_panicked, where="guest", signature="guest-panicked", not_these=STOPS),
    *on((OLD,), "paused", wedges.paused, where="vm-state", signature="vm-paused", not_these=("process-stopped",)),
    *on((NEW,), "prelaunch", wedges.prelaunch, where="vm-state", signature="vm-prelaunch", not_these=("vm-paused",)),
    *on(
        (OLD, NEW),
        "awaits-client",
        starts.awaits_client,
        where="vm-state",
        signature="vm-awaits-client",
        why="the serial port has server=on and wait=on, and nobody has connected",
        not_these=("main-loop-nested-poll", "main-loop-blocked", "chardev-blocked"),
    ),
    *on((OLD,), "incoming", wedges.incoming, where="migration", signature="vm-inmigrate", not_these=("vm-paused",)),
    *on(
        (OLD, NEW),
        "out-of-space",
        storage.out_of_space,
        where="vm-state",
        signature="vm-io-error",
        why="QEMU itself paused the VM (werror=enospc)",
        not_these=("vm-paused", "host-fs-frozen"),
    ),
    # The process.
    *on((OLD,), "stopped", wedges.stopped, where="process", signature="process-stopped"),
    *on((NEW,), "cgroup-frozen", wedges.cgroup_frozen, where="process", signature="cgroup-frozen"),
    # Storage of the host, by engine.
    *on(
        (OLD, DEBUG),
        "frozen-native",
        storage.frozen_native,
        where="host",
        signature="host-fs-frozen",
        why="io_submit blocks under the BQL, and the monitor with it, because the file system is frozen",
        not_these=HUNG,
    ),
    *on(
        (NEW,),
        "frozen-native-iothread",
        storage.frozen_native_iothread,
        where="host",
        signature="host-fs-frozen",
        not_these=HUNG,
    ),
    *on(
        (OLD, NEW),
        "frozen-threads",
        storage.frozen_threads,
        where="host",
        signature="host-fs-frozen",
        why="the workers take the wait, the main loop lives",
        not_these=(*HUNG, "io-submit-blocks"),
    ),
    *on(
        (NEW, DEBUG),
        "frozen-io-uring",
        storage.frozen_io_uring,
        where="host",
        signature="host-fs-frozen",
        why="the kernel's own workers take the wait, the main loop lives",
        not_these=(*HUNG, "io-submit-blocks"),
    ),
    # The VM's state on its way somewhere.
    *on(
        (OLD, DEBUG),
        "savevm-stalled",
        storage.savevm_stalled,
        where="host",
        signature="host-fs-frozen",
        why="the main loop saves the VM's state to an image on a frozen file system",
        not_these=HUNG,
    ),
    *on(
        (OLD,),
        "dump-stalled",
        storage.dump_stalled,
        where="host",
        signature="host-fs-frozen",
        why="the main loop writes the guest's memory to a file on a frozen file system",
        not_these=HUNG,
    ),
    *on(
        (NEW,),
        "migrate-file-stalled",
        storage.migrate_file_stalled,
        where="host",
        signature="host-fs-frozen",
        why="the migration's thread writes to a frozen file system",
        not_these=HUNG,
    ),
    *on(
        (OLD, DEBUG),
        "migrate-unread",
        storage.migrate_unread,
        where="migration",
        signature="migration-send-blocked",
        why="whoever should read the VM's state does not",
        not_these=("process-stopped", "host-fs-frozen"),
    ),
    # Whoever QEMU talks to.
    *on(
        (OLD, NEW, DEBUG),
        "nbd-silent",
        storage.nbd_silent,
        where="peer",
        signature="nbd-silent",
        not_these=("healthy", "throttle-timer-wait", "aio-in-kernel", "nbd-reconnecting"),
    ),
    *on(
        (OLD, DEBUG),
        "nbd-gone",
        storage.nbd_gone,
        where="peer",
        signature="nbd-reconnecting",
        not_these=("healthy", "throttle-timer-wait", "nbd-silent"),
    ),
    *on(
        (OLD, NEW),
        "fuse-silent",
        storage.fuse_silent,
        where="peer",
        signature="fuse-daemon-silent",
        not_these=("healthy", "host-fs-frozen", "throttle-timer-wait"),
    ),
    # The block layer.
    *on(
        (OLD, DEBUG),
        "drain-over-nbd",
        storage.drain_over_nbd,
        where="peer",
        signature="nbd-silent",
        why="the drain waits for a request that the server holds: it is the effect",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (OLD, DEBUG),
        "blkdebug",
        wedges.blkdebug,
        where="block",
        signature="blkdebug-suspended",
        not_these=("healthy", "throttle-timer-wait", "aio-in-kernel"),
    ),
    *on(
        (NEW, DEBUG),
        "backup-target-silent",
        storage.backup_target_silent,
        where="peer",
        signature="nbd-silent",
        why="guest writes wait until a backup has copied the old data to a target that does not answer",
        not_these=("healthy", "throttle-timer-wait"),
    ),
    *on(
        (NEW,),
        "backup-holds-writes",
        guests.backup_holds_writes,
        where="peer",
        signature="nbd-silent",
        why="the reads that flow say nothing about the writes",
        not_these=("healthy", "throttle-timer-wait"),
    ),
    *on(
        (OLD, DEBUG),
        "mirror-target-silent",
        storage.mirror_target_silent,
        where="peer",
        signature="nbd-silent",
        why="a job's requests, no guest's",
        not_these=("healthy", "throttle-timer-wait"),
    ),
    *on(
        (NEW,),
        "mirror-ready",
        wedges.mirror_ready,
        where="none",
        signature="healthy",
        why="a job that waits for its manager keeps nobody waiting",
        not_these=("throttle-timer-wait", "nbd-silent"),
    ),
    *on(
        (OLD, DEBUG),
        "one-of-64",
        wedges.one_of_64,
        where="throttle",
        signature="throttle-timer-wait",
        why="one disk, named; the other 63 are well",
        not_these=("healthy", "throttle-lock-self-deadlock"),
    ),
    # The main loop and the monitor.
    *on(
        (NEW,),
        "pipe-unread",
        wedges.machine_of(live.pipe_unread),
        where="control",
        signature="main-loop-blocked",
        why="the main thread writes to a pipe; nothing of storage is in it",
        not_these=HUNG,
    ),
    *on(
        (OLD,),
        "server-full",
        wedges.machine_of(live.connecting),
        where="peer",
        signature="peer-blocks-thread",
        why="connect() under the BQL, in no event loop",
        not_these=HUNG,
    ),
    *on(
        (OLD,),
        "iscsi-mute",
        wedges.machine_of(live.iscsi_silent),
        where="peer",
        signature="peer-blocks-thread",
        why="libiscsi polls its socket by itself, again and again",
        not_these=("process-stopped", "cgroup-frozen"),
    ),
    *on(
        (DEBUG,),
        "fuse-opening",
        wedges.machine_of(live_disks.added_from_stopped_fuse),
        where="peer",
        signature="fuse-daemon-silent",
        why="the file is only being opened: its name is in QEMU's memory alone",
        not_these=HUNG,
    ),
    *on((OLD,), "monitor-held", wedges.monitor_held, where="control", signature="monitor-held"),
    *on(
        (OLD, DEBUG),
        "chardev-unread",
        wedges.chardev_unread,
        where="control",
        signature="chardev-blocked",
        why="a vCPU writes to a debug console that nobody reads, under the BQL",
        not_these=("healthy", "process-stopped"),
    ),
)
