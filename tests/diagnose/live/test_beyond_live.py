"""Trouble that lies beyond QEMU or between two states is told for what it is, and what only looks like it is not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support import lab
from support.verdicts import captured
from support.wedged import export_clients, qtest, stacked
from support.wedged import wedges_apart as apart
from support.wedged import wedges_beyond as beyond
from support.wedged.trials import Trial, on_each_qemu

pytestmark = pytest.mark.live

OLD, NEW = "7.2", "10.0.2"


TRIALS = (
    Trial("a backup that is pulled", "none", "healthy", beyond.pulled_backup, (OLD, NEW)),
    Trial(
        "a vhost-user back end that is gone",
        "peer",
        "vhost-user-silent",
        beyond.back_end_killed,
        (OLD, NEW),
        says="gone",
    ),
    Trial(
        "a virtio disk whose driver claims more requests than its queue holds",
        "device",
        "virtio-device-broken",
        partial(qtest.disk_whose_driver_claims, beyond=500, names=("vd0",)),
        (OLD, NEW),
        ("proven",),
        says="marked broken",
    ),
    Trial(
        "a virtio disk whose driver has nothing to ask",
        "none",
        "healthy",
        partial(qtest.disk_whose_driver_claims, beyond=None),
        (OLD, NEW),
        ("proven",),
    ),
    Trial(
        "an image on a loop device whose file a stopped FUSE daemon serves",
        "peer",
        "storage-below-silent",
        stacked.ext4_on_loop_on_fuse,
        (OLD, NEW),
        says="is stopped",
    ),
    Trial(
        "an image on a loop device whose file a FUSE daemon serves",
        "none",
        "healthy",
        partial(stacked.ext4_on_loop_on_fuse, stops=False),
        (NEW,),
        ("proven",),
    ),
    Trial("a vhost-user back end that serves", "none", "healthy", beyond.back_end_serving, (NEW,)),
    Trial(
        "an NBD server that was killed, without a delay for it to come back",
        "peer",
        "requests-fail",
        beyond.failing_at_once,
        (OLD, NEW),
        says="not connected to",
    ),
    Trial(
        "an NBD server that serves", "none", "healthy", partial(beyond.failing_at_once, flows=True), (NEW,), ("proven",)
    ),
    Trial(
        "a stop that one worker is too deep in the kernel for",
        "process",
        "process-stopped",
        beyond.stopped_with_one_in_the_kernel,
        (OLD,),
    ),
    Trial(
        "a migration that waits for its manager's word",
        "migration",
        "vm-switching-over",
        beyond.waiting_before_switchover,
        (OLD, NEW),
        says="still here, and nowhere else",
    ),
    Trial(
        "three disks named by links, one on a frozen file system",
        "host",
        "host-fs-frozen",
        beyond.frozen_behind_links,
        (OLD, NEW),
    ),
    Trial(
        "a migration into a program that is stopped",
        "migration",
        "migration-send-blocked",
        beyond.migration_to_a_stopped_program,
        (NEW,),
        says="is stopped",
    ),
    Trial(
        "a drain behind a stopped client of an export",
        "peer",
        "export-client-unread",
        export_clients.drained,
        (NEW,),
        says="is stopped",
    ),
    Trial(
        "a client of an export that reads, and a drain before",
        "none",
        "healthy",
        partial(export_clients.drained, reads=True),
        (NEW,),
    ),
    Trial(
        "a migration that creeps", "none", "healthy", beyond.creeping_migration, (NEW,), says="the migration is slow"
    ),
    Trial(
        "a vhost-user back end whose own storage is frozen",
        "peer",
        "vhost-user-silent",
        apart.back_end_on_frozen,
        (NEW,),
        says="waits for a frozen file system",
    ),
    Trial(
        "a mirror that a limit holds back while the guest writes",
        "none",
        "healthy",
        apart.mirror_at_a_limit,
        (NEW,),
        says="while the guest's disks work",
    ),
    Trial(
        "a crash whose core goes into a frozen file system",
        "process",
        "core-dumping",
        apart.dumping_into_frozen,
        (OLD,),
        ("proven",),
        says="QEMU has crashed",
    ),
    Trial(
        "a VM without a monitor",
        "none",
        "healthy",
        beyond.unmonitored,
        (OLD, NEW),
        ("likely",),
        says="could not be asked",
    ),
)


@on_each_qemu(TRIALS)
def test_it_is_told_for_what_it_is(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        trial.assert_told(verdict)
        assert all(name in verdict.objects for name in it.names), verdict


@pytest.mark.parametrize("label", [NEW])
def test_a_server_that_answers_one_request_a_second_is_not_proven_silent(label: str, tmp_path: Path) -> None:
    with beyond.slow_server(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert verdict.where in {"none", "peer"}, verdict
        assert verdict.where == "none" or verdict.confidence != "proven", verdict
        assert verdict.where == "none" or "its last request ended" in verdict.answer["verdict"]["since"], verdict


@pytest.mark.parametrize("label", [NEW])
def test_writes_queued_at_a_limit_of_one_a_second_are_told_as_that(label: str, tmp_path: Path) -> None:
    with beyond.at_its_limit(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        assert verdict.where in {"none", "throttle"}, verdict  # none of them may have been let go between the looks
        assert "limit" in verdict.answer["verdict"]["headline"], verdict
