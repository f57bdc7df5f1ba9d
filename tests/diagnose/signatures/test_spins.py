"""An iothread that uses a whole processor spins, or polls for what comes next: its disks tell the two apart."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e


def busy(*, after: int, told: bool = True) -> Diagnosis:
    case = e.Case()
    case.idle_threads(iothreads=1)
    for task in case.tasks:
        if task.comm.startswith("IO "):
            task.state, task.syscall, task.cpu_ns, task.switches = "R", "running", int(4.9 * e.SECOND), 3
    case.monitor()
    case.disks(e.disk("d0", before=100, after=after))
    fake = case.bundle()
    if not told:
        fake = fake.without(layout.evidence(layout.SECOND_EXPOSURE, layout.QMP))
    return diagnose(gather_facts(fake))


def test_one_whose_disks_go_on_polls_and_is_no_finding() -> None:
    found = busy(after=190)
    assert found.signature == "healthy"
    assert any("it polls, as it may" in claim.text for claim in found.side_effects)


def test_one_whose_disks_did_nothing_spins() -> None:
    assert busy(after=100).signature == "main-loop-spins"


def test_where_nobody_counted_it_cannot_be_told() -> None:
    found = busy(after=190, told=False)
    assert found.signature != "main-loop-spins"
    assert "main-loop-spins" in {each.signature for each in found.cannot_tell}
