"""What a diagnosis speaks of is told apart by equality: a name that is a part of another is not that other."""

from __future__ import annotations

import dataclasses

import pytest

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.queries import naming
from autopsy.diagnose.verdict import diagnose
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts, Park, Role
from autopsy.report import tables_storage
from autopsy.report.wording import stalled_for
from support.built import cases
from support.built import evidence as e


def stuck_beside(stuck: str, fine: str) -> tuple[Facts, Diagnosis]:
    """Return a VM with a disk whose NBD server is silent, and one that has long been idle, with a name like it."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.NBD)
    case.monitor()
    minute, hour = 60 * e.SECOND, 3600 * e.SECOND
    case.disks(
        e.disk("", fine, driver="file", file="/images/fine.raw", idle_ns=hour, node="fine"),
        e.disk("", stuck, driver="nbd", file="nbd://storage:10809", idle_ns=minute, node="stuck"),
    )
    case.command_line = (
        *("-blockdev", "driver=file,filename=/images/fine.raw,node-name=fine"),
        *("-device", f"virtio-blk-pci,drive=fine,id={fine}"),
        *("-blockdev", "driver=nbd,server.type=inet,server.host=storage,server.port=10809,node-name=stuck"),
        *("-device", f"virtio-blk-pci,drive=stuck,id={stuck}"),
    )
    facts = gather_facts(case.bundle())
    return facts, diagnose(facts)


@pytest.mark.parametrize(("stuck", "fine"), [("virtio-disk10", "virtio-disk1"), ("scsi37", "scsi3"), ("1000", "0")])
def test_a_disk_whose_name_is_part_of_another_s_is_not_drawn_as_stuck(stuck: str, fine: str) -> None:
    facts, found = stuck_beside(stuck, fine)
    assert found.signature == "nbd-silent"
    assert stuck in found.objects
    assert {path.disk: path.stuck_at is not None for path in found.paths} == {stuck: True, fine: False}
    assert not [claim.text for claim in found.chain if f"disk {fine} " in claim.text]
    rows = {row.cells[0]: row.stuck for row in tables_storage.disks(facts, found).rows}
    assert rows == {stuck: True, fine: False}
    assert stalled_for(facts, found).words.startswith("for 1 min")


def test_a_disk_is_not_marked_because_a_thread_s_number_holds_its_name() -> None:
    case = cases.frozen_threads()
    for task in case.tasks[-4:]:
        task.tid += 1000
    case.exchanges["qmp.query-block"], case.exchanges["qmp.query-status"] = [], []
    case.exchanges["second-exposure"] = []
    case.monitor()
    case.disks(e.disk("d0", file="/mnt/vm/disk.raw"), e.disk("5", file="/other/disk5.raw"))
    facts = gather_facts(case.bundle())
    found = diagnose(facts)
    assert any("5" in name for name in found.objects)
    assert {row.cells[0] for row in tables_storage.disks(facts, found).rows if row.stuck} == {"d0"}


def test_a_throttle_group_whose_name_is_part_of_another_s_is_not_marked() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked(e.THROTTLED_LEGACY, 3)
    case.monitor()
    case.disks(
        e.disk("d0", "vd10", bps=100, group="group10"), e.disk("d1", "vd1", bps=10**9, group="group1", after=900)
    )
    facts = gather_facts(case.bundle())
    found = diagnose(facts)
    assert found.where == "throttle"
    rows = tables_storage.throttle_groups(facts, found).rows
    assert {row.cells[0]: row.stuck for row in rows} == {"group10": True, "group1": False}


def test_what_helps_to_know_a_subject_again_does_not_make_it_another() -> None:
    assert subjects.Thread(7, "worker", Role.WORKER) == subjects.Thread(7)
    assert subjects.Thread(7) != subjects.Peer(7)
    assert {subjects.FileSystem("/a", "ext4", "/dev/vda")} == {subjects.FileSystem("/a")}


def test_two_kinds_with_one_name_are_two_records() -> None:
    disk, device = naming.record(subjects.Disk("vd0")), naming.record(subjects.Device("vd0"))
    assert disk.name == device.name
    assert disk != device
    assert naming.record(subjects.ThrottleGroup("g")).kind == "throttle group"


def test_every_kind_of_subject_has_a_name_of_its_own() -> None:
    kinds = subjects.Subject.__args__  # type: ignore[attr-defined]  # a union's members
    for kind in set(kinds) - {subjects.Place}:
        values = [7 if field.type == "int" else "seven" for field in dataclasses.fields(kind) if field.compare]
        if not values:  # there is one of it
            assert naming.name(kind())
            continue
        assert "7" in naming.name(kind(*values)) or "seven" in naming.name(kind(*values))


def test_every_place_reads_as_a_thing_that_requests_wait_for_and_as_no_other() -> None:
    names = [naming.name(subjects.Place(park)) for park in Park]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.split()[0] in {"waits", "is", "asked", "sleeps", "runs", "serves"}] == []


def test_the_record_of_a_diagnosis_names_the_same_as_its_words() -> None:
    found = diagnose(gather_facts(cases.nbd().bundle()))
    assert tuple(each.name for each in found.subjects) == found.objects
    assert {each.kind for each in found.subjects} >= {"disk", "peer"}
