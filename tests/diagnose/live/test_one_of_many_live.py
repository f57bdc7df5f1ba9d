"""One request of many, one file of several: it is told, and that the others flow keeps it from being proven."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support import lab
from support.verdicts import captured
from support.wedged import one_of_many
from support.wedged.trials import Trial, on_each_qemu

pytestmark = [pytest.mark.live, pytest.mark.soak]  # what is made of it is tested in the gate on built evidence

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
TRIALS = (
    Trial("all answered", "none", "healthy", partial(one_of_many.forgotten, forgets=False), (OLD, NEW, NEWEST)),
    Trial("a data file", "peer", "nbd-silent", one_of_many.data_file, (OLD, NEW, NEWEST), says="disk vd0"),
    Trial("a data file that is served", "none", "healthy", partial(one_of_many.data_file, stops=False), (OLD,)),
    Trial("an extent", "host", "host-fs-frozen", one_of_many.extent, (OLD, NEW)),
    Trial("an extent that is written", "none", "healthy", partial(one_of_many.extent, freezes=False), (OLD,)),
)


@on_each_qemu(TRIALS)
def test_a_part_of_a_disk_is_told_as_that_disk(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        trial.assert_told(verdict)
        assert all(name in verdict.objects for name in it.names if trial.where != "none"), verdict


@pytest.mark.parametrize("label", [OLD, NEW, DEBUG, NEWEST])
def test_a_request_that_others_overtake_is_never_proven_to_be_well(label: str, tmp_path: Path) -> None:
    with one_of_many.forgotten(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
    told = (verdict.signature, verdict.confidence)
    assert told in {("nbd-silent", "likely"), ("healthy", "likely")}, verdict
    if verdict.signature == "nbd-silent":
        assert "others such as these were answered meanwhile" in verdict.answer["verdict"]["headline"], verdict
        assert all(name in verdict.objects for name in it.names), verdict
