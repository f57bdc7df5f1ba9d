"""Shapes of fixtures/ whose trouble lies beyond QEMU or between two states, and healthy ones that look like those."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fixtures_shape import Shape, on
from fixtures_wedges import machine_of, node, write

from support import lab
from support.wedged import export_clients, idle_disks, qtest, stacked
from support.wedged import wedges_apart as apart
from support.wedged import wedges_beyond as beyond
from support.wedged import wedges_followed as followed
from support.wedged import wedges_found as found
from support.wedged.wedges import Stuck

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
WATCHED_SECONDS = 12  # some samples of a watch


@contextmanager
def broken_disk(build: lab.Build) -> Iterator[Stuck]:
    """A virtio disk whose driver claims more requests than its queue holds: QEMU marks it broken."""
    with qtest.disk_whose_driver_claims(build, 500) as it:
        yield it


@contextmanager
def nbd_silent_watched(build: lab.Build) -> Iterator[lab.Machine]:
    """Eight writes go to a qemu-nbd that is stopped (SIGSTOP) then; a watch saw the VM idle, and sees that, too."""
    watch = [sys.executable, "-m", "autopsy", "watch", "--no-capture"]
    with (
        lab.folder() as place,
        lab.nbd(lab.disk(place / "d.raw")) as server,
        lab.qemu(build, *node(f"driver=nbd,{server.server}")) as machine,
        subprocess.Popen(watch, stderr=subprocess.DEVNULL) as watching,
    ):
        try:
            time.sleep(WATCHED_SECONDS)
            with lab.stopped(server.process):
                write(machine, lab.of_device("vd0"))
                time.sleep(WATCHED_SECONDS)
                yield machine
        finally:
            watching.terminate()


BEYOND: tuple[Shape, ...] = (
    *on(
        (OLD,),
        "nbd-silent-watched",
        nbd_silent_watched,
        where="peer",
        signature="nbd-silent",
        why="since when, the watch has seen",
        not_these=("healthy", "nbd-reconnecting"),
    ),
    *on(
        (NEW,),
        "virtio-broken",
        machine_of(broken_disk),
        where="device",
        signature="virtio-device-broken",
        not_these=("guest-panicked",),
    ),
    *on((OLD,), "vhost-user-gone", machine_of(beyond.back_end_killed), where="peer", signature="vhost-user-silent"),
    *on((NEW,), "export-idle-client", machine_of(beyond.pulled_backup), where="none", signature="healthy"),
    *on((OLD,), "requests-fail", machine_of(beyond.failing_at_once), where="peer", signature="requests-fail"),
    *on(
        (NEW,),
        "switching-over",
        machine_of(beyond.waiting_before_switchover),
        where="migration",
        signature="vm-switching-over",
    ),
    *on(
        (OLD,),
        "frozen-behind-links",
        machine_of(beyond.frozen_behind_links),
        where="host",
        signature="host-fs-frozen",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (NEW,),
        "loop-on-fuse",
        machine_of(stacked.ext4_on_loop_on_fuse),
        where="peer",
        signature="storage-below-silent",
        not_these=("healthy", "host-fs-frozen"),
    ),
    *on(
        (NEW,),
        "export-unread",
        machine_of(export_clients.drained),
        where="peer",
        signature="export-client-unread",
        why="the drain ends once the client has taken what it asked for",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (NEW,),
        "slow-at-its-limit",
        machine_of(beyond.at_its_limit),
        where="none",
        signature="healthy",
        why="slow at a limit is not stuck",
        not_these=("throttle-timer-wait", "throttle-lock-self-deadlock"),
        gap=3.0,
    ),
    *on(
        (NEW,),
        "mirror-at-a-limit",
        machine_of(apart.mirror_at_a_limit),
        where="none",
        signature="healthy",
        why="the job is slow, and the guest's disk does its work",
        not_these=("job-stalled", "mirror-waits"),
    ),
    *on(
        (OLD,),
        "shared-group",
        machine_of(apart.two_in_one_group),
        where="throttle",
        signature="throttle-timer-wait",
        why="nobody can tell whose requests stand in a shared queue: both disks are named, and not the third",
        not_these=("healthy",),
    ),
    *on(
        (NEW,),
        "source-stopped",
        machine_of(apart.source_stopped),
        where="migration",
        signature="vm-inmigrate",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (OLD,),
        "dumping-into-frozen",
        machine_of(apart.dumping_into_frozen),
        where="process",
        signature="core-dumping",
        why="it has crashed: that its core's file system is frozen only keeps the rest of it here",
        not_these=("process-stopped",),
    ),
    *on(
        (OLD,),
        "two-groups",
        machine_of(apart.two_groups),
        where="throttle",
        signature="throttle-timer-wait",
        why="the disk whose limit is low, and not the other, which has a group of its own",
        not_these=("healthy", "throttle-stale-timer"),
    ),
    *on(
        (NEW,),
        "vhost-user-frozen",
        machine_of(apart.back_end_on_frozen),
        where="peer",
        signature="vhost-user-silent",
        why="it listens, and a thread of it waits for a thaw; QEMU holds none of the guest's requests",
        not_these=("host-fs-frozen", "process-stopped"),
    ),
    *on(
        (NEW,),
        "vm-ended",
        machine_of(apart.ended_meanwhile),
        where="process",
        signature="vm-ended",
        why="that it was well before is no finding of its own",
        gap=10.0,
    ),
    *on(
        (NEW,),
        "nbd-idle-stopped",
        machine_of(idle_disks.on_nbd),
        where="none",
        signature="healthy",
        why="nothing waits, and whatever is asked next will: it is not proven healthy",
    ),
    *on(
        (OLD,),
        "fuse-idle-stopped",
        machine_of(idle_disks.on_fuse),
        where="none",
        signature="healthy",
        why="nothing waits yet; to ask QEMU for its disks would have taken its main loop away",
    ),
    *on(
        (NEW,),
        "stream-over-fuse",
        machine_of(idle_disks.streamed_from_fuse),
        where="peer",
        signature="fuse-daemon-silent",
        why="the kernel's stack names the page cache alone, and the file's mount the daemon",
        not_these=("healthy", "host-block-wait"),
    ),
    *on(
        (OLD, DEBUG),
        "stop-over-mirror",
        machine_of(apart.stop_over_a_mirror),
        where="peer",
        signature="nbd-silent",
        why="the requests are the mirror's own, and only the connection tells of the server",
        not_these=("process-stopped",),
    ),
    *on(
        (NEW,),
        "postcopy-cut-off",
        machine_of(apart.postcopy_cut_off),
        where="migration",
        signature="vm-in-postcopy",
        why="the VM is not here any more, and a part of its memory is nowhere else",
        not_these=("vm-switching-over", "vm-migrated", "healthy"),
    ),
    *on(
        (OLD,),
        "fifo-unread",
        machine_of(apart.fifo_of_a_stopped_program),
        where="control",
        signature="main-loop-blocked",
        why="the program that should read is named, and it is stopped",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (NEW,),
        "back-end-over-stopped",
        machine_of(found.back_end_over_a_server),
        where="none",
        signature="healthy",
        why="the back end answers the guest past QEMU: nobody sees that it does not, and so nothing is proven",
    ),
    *on(
        (NEW,),
        "ram-on-stopped-fuse",
        machine_of(found.ram_on_fuse),
        where="peer",
        signature="fuse-daemon-silent",
        why="the main thread waits for the vCPU, and the vCPU for the daemon",
        not_these=("healthy", "host-block-wait"),
    ),
    *on(
        (NEWEST,),
        "nbd-not-accepted",
        machine_of(found.nobody_accepts),
        where="peer",
        signature="nbd-reconnecting",
        not_these=("healthy", "nbd-silent"),
    ),
    *on(
        (OLD,),
        "loop-on-frozen",
        machine_of(found.loop_device),
        where="host",
        signature="aio-in-kernel",
        why="the loop device has the requests, and the device below it has none",
        not_these=("healthy", "host-fs-frozen"),
    ),
    *on(
        (NEWEST,),
        "fifo-console-unread",
        machine_of(found.console_to_a_fifo),
        where="control",
        signature="chardev-blocked",
        not_these=("healthy",),
    ),
    *on(
        (OLD,),
        "fifo-opener-stopped",
        machine_of(followed.fifo_opener),
        where="control",
        signature="main-loop-blocked",
        why="whoever opens the FIFO's other end is stopped in that very call, and has no descriptor of it",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (OLD,),
        "own-export",
        machine_of(followed.served_by_itself),
        where="peer",
        signature="fuse-daemon-silent",
        why="the daemon is this QEMU itself: its main loop waits for its main loop, and a kill helps",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (OLD,),
        "bus-stopped",
        machine_of(apart.bus),
        where="peer",
        signature="peer-blocks-thread",
        why="a thread of GLib's has the socket, and who asked waits for that thread: the bus's daemon is stopped",
        not_these=("healthy", "process-stopped"),
    ),
    *on(
        (NEW,),
        "snapshot-unread",
        machine_of(followed.snapshot_unread),
        where="migration",
        signature="migration-send-blocked",
        why="the guest's page waits for the snapshot, and that for its reader",
        not_these=("healthy", "postcopy-page-wait"),
    ),
    *on(
        (OLD,),
        "server-left",
        machine_of(followed.server_left),
        where="peer",
        signature="requests-fail",
        why="nothing waits, and whatever is asked fails at once",
        not_these=("fuse-daemon-silent",),
    ),
    *on(
        (NEW,),
        "iothread-polls",
        machine_of(followed.polling),
        where="none",
        signature="healthy",
        why="an iothread that polls uses a processor, and its disk works",
    ),
    *on(
        (NEW,),
        "limit-below-a-limit",
        machine_of(followed.limit_below_a_limit),
        where="throttle",
        signature="throttle-timer-wait",
        why="the lower filter's group, and not the upper's",
        not_these=("healthy", "throttle-stale-timer"),
    ),
    *on(
        (NEW,),
        "mirror-writes",
        machine_of(followed.mirror_writes),
        where="peer",
        signature="nbd-silent",
        why="the guest's own writes wait for the mirror's target, which is in no disk's chain; the job is ready",
        not_these=("healthy",),
    ),
)
