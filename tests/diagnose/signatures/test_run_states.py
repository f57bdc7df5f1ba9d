"""What a run state says of the VM depends on the migration, and on what it was at the last look."""

from __future__ import annotations

import pytest

from autopsy.bundle import layout, records
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e


def finishing(migration: str | None) -> Diagnosis:
    case = e.Case()
    case.idle_threads()
    case.monitor("finish-migrate")
    if migration is not None:
        case.asked("query-migrate", {"status": migration})
    case.disks(e.disk("d0"))
    return diagnose(gather_facts(case.bundle()))


@pytest.mark.parametrize("status", ["postcopy-active", "postcopy-paused", "postcopy-recover"])
def test_a_vm_in_postcopy_is_not_said_to_be_here_and_never_to_be_continued_or_ended(status: str) -> None:
    found = finishing(status)
    assert (found.where, found.signature, found.confidence) == ("migration", "vm-in-postcopy", "proven")
    assert found.kill == "needless"
    assert "still here" not in " ".join([found.headline, *(each.headline for each in found.secondary)])
    assert not any(each.when in {"now", "if-not"} and '"cont"' in each.command for each in found.advice)


def test_one_that_sends_the_last_of_it_is_here_and_nowhere_else() -> None:
    found = finishing("device")
    assert found.signature == "vm-switching-over"
    assert "still here, and nowhere else" in found.headline


def test_where_nobody_could_be_asked_of_the_migration_it_may_run_elsewhere() -> None:
    found = finishing(None)
    assert found.signature == "vm-switching-over"
    assert "still here" not in found.headline
    assert "nobody could be asked" in found.headline


def paused(later: str) -> Diagnosis:
    case = cases.paused()
    answers = case.exchanges[layout.SECOND_EXPOSURE]
    answers[:] = [each for each in answers if each.question != "query-status"]
    case.asked("query-status", {"status": later, "running": later == "running"}, step=layout.SECOND_EXPOSURE)
    return diagnose(gather_facts(case.bundle()))


def test_a_vm_that_was_paused_for_a_moment_runs() -> None:
    assert (paused("running").where, paused("running").signature) == ("none", "healthy")


def test_a_vm_that_is_paused_at_both_looks_is_paused() -> None:
    assert (paused("paused").where, paused("paused").signature) == ("vm-state", "vm-paused")


def held_by(state: str) -> Diagnosis:
    """Return what is said of a healthy VM whose monitor a daemon holds that is in this state."""
    case = cases.nbd(waits=False, state=state)
    case.disks(e.disk("d0"))
    case.ends[:] = [
        records.SocketEnd(fd=5, inode=70, family="unix", state="LISTEN", local="/run/vm.monitor"),
        records.SocketEnd(fd=12, inode=78, family="unix", state="ESTAB", local="/run/vm.monitor", peer_pids=(900,)),
    ]
    case.monitor_address = "5"
    return diagnose(gather_facts(case.bundle()))


def test_a_manager_s_daemon_that_is_stopped_is_named_and_its_vm_is_not_blamed() -> None:
    found = held_by("T (stopped)")
    assert found.where == "none"
    (beside,) = (each for each in found.secondary if each.signature == "manager-silent")
    assert beside.objects == ("qemu-nbd 900",)
    assert (
        beside.headline
        == "qemu-nbd 900, which holds the monitor, does not do its work: its process 900 (qemu-nbd) is stopped"
    )


def test_one_that_waits_for_work_is_not_named() -> None:
    assert held_by("S (sleeping)").secondary == ()
