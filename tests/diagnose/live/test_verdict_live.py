"""Wedged QEMUs are told for what they are, and go on once the cause is gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autopsy.drill.machine import QmpRefused
from support import lab
from support.verdicts import captured
from support.wedged import wedges, wedges_disks
from support.wedged.wedges import Stuck

pytestmark = pytest.mark.live

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"


@dataclass(frozen=True, slots=True)
class Wedge:
    """`where` and `signature` are the verdict's; `beside` must be among the secondary ones.

    `make test` takes it on one of its `usual` QEMUs (none where a drill does), `make soak` on all but those that have
    no such device (`lacks`). One that `dies` does not come back by itself.
    """

    name: str
    where: str
    signature: str
    set_up: Callable[[lab.Build], AbstractContextManager[Stuck]]
    usual: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    beside: str = ""
    dies: bool = False


WEDGES = (
    Wedge("a -drive's own limits", "throttle", "throttle-timer-wait", wedges_disks.throttled, ()),
    Wedge("a throttle node", "throttle", "throttle-timer-wait", wedges_disks.throttle_node, ()),
    Wedge(
        "a stale throttle timer",
        "throttle",
        "throttle-stale-timer",
        partial(wedges_disks.throttle_node, stale=True),
        (DEBUG,),
    ),
    Wedge(
        "throttled writes beside reads that flow",
        "throttle",
        "throttle-timer-wait",
        wedges_disks.writes_throttled_while_reads_flow,
        (NEW,),
    ),
    Wedge("a stopped NBD server", "peer", "nbd-silent", wedges_disks.nbd_stopped, ()),
    Wedge(
        "200 requests to a stopped NBD server, by TCP",
        "peer",
        "nbd-silent",
        partial(wedges_disks.nbd_stopped, tcp=True, requests=200),
        (NEW, NEWEST),
    ),
    Wedge(
        "a drain over a stopped NBD server",
        "peer",
        "nbd-silent",
        partial(wedges_disks.nbd_stopped, stopping=True),
        (),
        beside="main-loop-nested-poll",
    ),
    Wedge("an NBD server that is gone", "peer", "nbd-reconnecting", wedges_disks.nbd_killed, (OLD, NEW), dies=True),
    Wedge(
        "a backing file's NBD server, beside reads that flow",
        "peer",
        "nbd-silent",
        wedges_disks.backing_stalled_while_others_flow,
        (NEW,),
    ),
    Wedge("one child of a quorum", "peer", "nbd-silent", wedges_disks.quorum_child_stuck, ()),
    Wedge("a stopped FUSE daemon", "peer", "fuse-daemon-silent", wedges_disks.fuse_stopped, ()),
    Wedge(
        "a disk added from a stopped FUSE daemon",
        "peer",
        "fuse-daemon-silent",
        wedges_disks.added_from_stopped_fuse,
        (OLD, DEBUG),
    ),
    Wedge(
        "a stopped vhost-user back end",
        "peer",
        "vhost-user-silent",
        partial(wedges.back_end_stopped, stopping=False),
        (NEW,),
        lacks=(DEBUG,),
    ),
    Wedge(
        "a `stop` that asks a stopped vhost-user back end",
        "peer",
        "vhost-user-silent",
        partial(wedges.back_end_stopped, stopping=True),
        (OLD,),
        lacks=(DEBUG,),
    ),
    Wedge(
        "64 disks, one on a frozen file system",
        "host",
        "host-fs-frozen",
        partial(wedges_disks.frozen, engine="aio=threads", disks=64),
        (OLD, NEW),
    ),
    Wedge(
        "a frozen file system under an iothread's aio=native",
        "host",
        "host-fs-frozen",
        partial(wedges_disks.frozen, engine="aio=native,cache.direct=on", iothread=True),
        (OLD,),
        beside="io-submit-blocks",
    ),
    Wedge(
        "a frozen file system under aio=io_uring",
        "host",
        "host-fs-frozen",
        partial(wedges_disks.frozen, engine="aio=io_uring"),
        (NEW, NEWEST),
    ),
    Wedge(
        "a control group's limit under aio=threads",
        "host",
        "cgroup-io-limited",
        partial(wedges_disks.limited_by_the_host, engine="threads"),
        (OLD,),
        beside="host-block-wait",
    ),
    Wedge(
        "a control group's limit under aio=io_uring",
        "host",
        "cgroup-io-limited",
        partial(wedges_disks.limited_by_the_host, engine="io_uring"),
        (NEW,),
        beside="aio-in-kernel",
    ),
    Wedge(
        "savevm on a frozen file system",
        "host",
        "host-fs-frozen",
        wedges_disks.savevm_on_frozen,
        (OLD, NEW),
        beside="savevm-blocks-main-loop",
    ),
    Wedge(
        "a drain over blkdebug",
        "block",
        "blkdebug-suspended",
        wedges_disks.stop_over_blkdebug,
        (OLD,),
        beside="main-loop-nested-poll",
        dies=True,
    ),
    Wedge(
        "null-co's latency",
        "block",
        "block-driver-wait",
        partial(wedges_disks.null_with_latency, driver="null-co"),
        (NEW,),
    ),
    Wedge(
        "null-aio's latency",
        "block",
        "block-driver-wait",
        partial(wedges_disks.null_with_latency, driver="null-aio"),
        (),
    ),
    Wedge(
        "a backup's target, beside reads that flow",
        "peer",
        "nbd-silent",
        wedges_disks.backup_stalled_while_reads_flow,
        (NEW,),
    ),
    Wedge("a mirror's target", "peer", "nbd-silent", wedges_disks.mirror_stalled, (NEW,), beside="job-stalled"),
    Wedge("a disk without space", "vm-state", "vm-io-error", wedges_disks.out_of_space, (OLD, NEW)),
    Wedge("a frozen control group", "process", "cgroup-frozen", wedges.cgroup_frozen, (OLD, NEW)),
    Wedge("a debugger", "process", "process-traced", wedges.debugged, (NEW,)),
    Wedge(
        "a guest that panicked",
        "guest",
        "guest-panicked",
        partial(
            wedges.running,
            code=wedges.PANIC,
            more=("-device", "pvpanic", "-action", "panic=pause"),
            ends_in="guest-panicked",
        ),
        (OLD, NEW),
    ),
    Wedge("a console that nobody reads", "control", "chardev-blocked", wedges.console_unread, (OLD,)),
    Wedge("a pipe that nobody reads", "control", "main-loop-blocked", wedges.pipe_unread, (NEW,)),
    Wedge(
        "a pipe that nobody opens",
        "control",
        "main-loop-blocked",
        partial(wedges.pipe_unread, opened=False),
        (OLD, DEBUG),
    ),
    Wedge("a server that accepts nobody", "peer", "peer-blocks-thread", wedges.connecting, (OLD, DEBUG)),
    Wedge("a silent iSCSI target", "peer", "peer-blocks-thread", wedges.iscsi_silent, (OLD,), (NEW, DEBUG, NEWEST)),
    Wedge(
        "a migration that nobody reads", "migration", "migration-send-blocked", wedges.migration_unread, (NEW, NEWEST)
    ),
)


def runs() -> list[Any]:
    """Return each wedge on all the QEMUs that have its devices; those that are not its usual ones are for the soak."""
    return [
        pytest.param(
            wedge,
            label,
            id=f"{wedge.name}, {label}".replace(" ", "_"),
            marks=() if label in wedge.usual else pytest.mark.soak,
        )
        for wedge in WEDGES
        for label in (OLD, NEW, DEBUG, NEWEST)
        if label not in wedge.lacks
    ]


@pytest.mark.parametrize(("wedge", "label"), runs())
def test_a_wedge_is_told_for_what_it_is_and_lifts(wedge: Wedge, label: str, tmp_path: Path) -> None:
    with wedge.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert (verdict.where, verdict.signature) == (wedge.where, wedge.signature), verdict
        assert all(name in verdict.objects for name in it.names), verdict
        assert not wedge.beside or wedge.beside in verdict.secondary, verdict
        if not wedge.dies:
            it.lift()
            lab.until("its monitor answered again", lambda: answers(it), seconds=30)


def answers(it: Stuck) -> bool:
    try:
        it.vm.qmp("query-status", within=5)
    except (OSError, QmpRefused):  # refused: what it had not answered before is answered now, to whoever is there
        return False
    return True


def test_a_second_capture_tells_the_same_although_the_first_has_interrupted_its_sleeps(tmp_path: Path) -> None:
    with wedges.iscsi_silent(lab.build(OLD)) as it:
        told = [captured(it.vm.pid, tmp_path / str(number)) for number in range(2)]
        assert {each.signature for each in told} == {"peer-blocks-thread"}, told
