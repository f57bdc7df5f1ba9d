"""Whom a QEMU waits for is told where nobody sees it at once, and their healthy twins are told as healthy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.waits.graph import build
from autopsy.diagnose.waits.wait import How
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Role
from autopsy.facts.subjects import Thread
from support import lab
from support.verdicts import captured
from support.wedged import wedges_apart as apart
from support.wedged import wedges_followed as followed
from support.wedged.trials import Trial, on_each_qemu
from support.wedged.wedges import Stuck

pytestmark = [pytest.mark.live, pytest.mark.soak]  # stored cases say the same in the gate

SetUp = Callable[[lab.Build], AbstractContextManager[Stuck]]
OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
GAP = ("--gap", "4")
TRIALS = (
    Trial(
        "a FIFO whose opener is stopped",
        "control",
        "main-loop-blocked",
        followed.fifo_opener,
        (OLD, NEWEST),
        says="opens its other end, and stands still",
    ),
    Trial("a FIFO whose opener comes", "none", "healthy", partial(followed.fifo_opener, stops=False), (NEW,)),
    Trial(
        "an export of its own",
        "peer",
        "fuse-daemon-silent",
        followed.served_by_itself,
        (OLD, NEWEST),
        says="waits for itself",
    ),
    Trial("a snapshot that nobody reads", "migration", "migration-send-blocked", followed.snapshot_unread, (OLD, NEW)),
    Trial("a snapshot that is read", "none", "healthy", partial(followed.snapshot_unread, reads=True), (NEW,)),
    Trial("a server that has left", "peer", "requests-fail", followed.server_left, (OLD, NEW), says="ENOTCONN"),
    Trial("a server that serves", "none", "healthy", partial(followed.server_left, leaves=False), (NEW,), ("proven",)),
    Trial("an iothread that polls", "none", "healthy", followed.polling, (OLD, NEW)),
    Trial("a limit below a limit", "throttle", "throttle-timer-wait", followed.limit_below_a_limit, (NEW, DEBUG)),
    Trial(
        "two limits that let all through",
        "none",
        "healthy",
        partial(followed.limit_below_a_limit, lower="x-iops-total=1000"),
        (NEW,),
    ),
    Trial("a stopped D-Bus", "peer", "peer-blocks-thread", apart.bus, (OLD, NEW, NEWEST), says="dbus-daemon"),
    Trial("a D-Bus that answers", "none", "healthy", partial(apart.bus, stops=False, asks=False), (OLD, NEW)),
    Trial(  # the guest only talks
        "a console's file that is written",
        "guest",
        "guest-spins",
        partial(followed.console_to_a_file, freezes=False),
        (NEW,),
        ("possible",),
    ),
    Trial(
        "a mirror that blocks writes",
        "peer",
        "nbd-silent",
        followed.mirror_writes,
        (OLD, NEW, DEBUG, NEWEST),
        says="of disk vd0 waits for its mirror's target",
    ),
    Trial(
        "a mirror that blocks writes and copies them",
        "none",
        "healthy",
        partial(followed.mirror_writes, stops=False),
        (OLD, NEW),
    ),
)


@pytest.mark.parametrize("label", [OLD, NEW, DEBUG, NEWEST])
def test_a_console_s_file_on_a_frozen_file_system_is_told_and_no_migration(label: str, tmp_path: Path) -> None:
    with followed.console_to_a_file(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path, *GAP)
        assert (verdict.where, verdict.signature) == ("host", "host-fs-frozen"), verdict
        assert all(name in verdict.objects for name in it.names), verdict
        assert "migration-send-blocked" not in verdict.secondary, verdict


RCU = (followed.drains_rcu, Role.MAIN, ("call_rcu", "qemu-system"))
CHANNELS = (followed.channels_unread, Role.MIGRATION, ("multifdsend", "mig/src/send"))


@pytest.mark.parametrize(
    ("set_up", "waiter", "signaller", "label"),
    # RCU's thread begins before QEMU 7.2 knows that it is to name its threads, and its function has no name there.
    [*((*RCU, label) for label in (DEBUG, NEWEST)), *((*CHANNELS, label) for label in (OLD, DEBUG, NEWEST))],
)
def test_a_condition_leads_to_the_threads_that_signal_it(
    set_up: SetUp, waiter: Role, signaller: tuple[str, ...], label: str, tmp_path: Path
) -> None:
    with set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path, *GAP)
        assert all(name in verdict.objects or verdict.signature == "process-traced" for name in it.names), verdict
    facts = gather_facts(open_bundle(Path(verdict.answer["bundle"])))
    signalled = [wait for wait in build(facts).waits if wait.how is How.SIGNALLED_BY]
    assert {wait.waiter.role for wait in signalled if isinstance(wait.waiter, Thread)} == {waiter}
    assert all(isinstance(wait.on, Thread) and wait.on.comm.startswith(signaller) for wait in signalled)


def test_a_device_that_cannot_be_added_is_refused_where_rcu_s_thread_works(tmp_path: Path) -> None:
    with followed.drains_rcu(lab.build(NEW), stops=False) as it:
        verdict = captured(it.vm.pid, tmp_path, *GAP)
        assert (verdict.where, verdict.confidence) == ("none", "proven"), verdict


@on_each_qemu(TRIALS)
def test_whom_it_waits_for_is_told(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path, *GAP)
        trial.assert_told(verdict)
        assert all(name in verdict.objects for name in it.names if trial.where != "none"), verdict
