"""What is advised fits evidence that others took: the VM is not here, and what is missing may still be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import pastes
from support.built.imported import diagnosis_of
from support.built.pastes import DISPATCH, LOCK, POLL

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "throttle-timer-7.2" / "bundle"
UNKNOWN = pastes.dump(("kvm", (*POLL, "bdrv_drain_all_begin", *DISPATCH)))
KNOWN = pastes.dump(("kvm", (*LOCK, "throttle_group_restart", "x", "throttle_group_y", *DISPATCH)))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return diagnosis_of(UNKNOWN, tmp_path_factory.mktemp("unknown"))


def test_of_an_unknown_cause_the_rest_of_the_evidence_is_asked_for(unknown: Diagnosis) -> None:
    assert unknown.where == "unknown"
    assert [(each.when, each.command.partition(" ")[0]) for each in unknown.advice] == [
        ("now", "autopsy"),
        ("if-not", "coredumpctl"),
        ("later", "autopsy"),
    ]
    assert "dumpxml" in unknown.advice[0].why
    assert unknown.runbook == "runbooks/unknown-of-import.md"


def test_nothing_is_to_be_captured_here_of_a_vm_that_is_not_here(unknown: Diagnosis) -> None:
    words = " ".join((*unknown.next_steps, *(each.command for each in unknown.advice if each.when == "now")))
    assert "as root, with gdb, without `--fast`" not in words
    assert "autopsy examine BUNDLE" not in words


@pytest.mark.parametrize("text", [UNKNOWN, KNOWN])
def test_no_step_names_a_process_of_another_host(text: str, tmp_path: Path) -> None:
    found = diagnosis_of(text, tmp_path)
    assert not any("5000" in each.command for each in found.advice)
    assert not any("5000" in step for step in found.next_steps)
    steps = [step for step in found.next_steps if not step.startswith(("Next time", "Without autopsy"))]
    assert all(step.startswith("As long as it stands, on its own host") for step in steps)


def test_a_capture_is_advised_as_before() -> None:
    found = diagnose(gather_facts(open_bundle(FIXTURE)))
    assert not any("own host" in step for step in found.next_steps)
