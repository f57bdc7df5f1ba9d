"""What one look, one counter or one name tells for another wedge is told for what it is, and its twin is well."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support import lab
from support.verdicts import captured
from support.wedged import wedges_mistaken as mistaken
from support.wedged.trials import Trial, on_each_qemu

pytestmark = [pytest.mark.live, pytest.mark.soak]  # what is made of it is tested in the gate on built evidence

OLD, NEW, DEBUG, NEWEST = "7.2", "10.0.2", "10.0.2-debug", "11"
EVERY = (OLD, NEW, DEBUG, NEWEST)
NOT_THE_OLDEST = EVERY[1:]  # 7.2 lets a write go before that time, and its guest flows
TRIALS = (
    Trial("a terminal nobody reads", "control", "chardev-blocked", mistaken.console_to_a_terminal, EVERY),
    Trial("a lease", "control", "main-loop-blocked", mistaken.leased, (OLD, NEW), ("proven",), "a lease on the file"),
    Trial("a dump", "migration", "migration-send-blocked", mistaken.dumped_to_a_fifo, (OLD, NEW, NEWEST), ("proven",)),
    Trial("a thousandth of a processor", "host", "cpu-starved", mistaken.starved, (OLD, NEWEST), ("likely",)),
    Trial(
        "a copy that was given up", "none", "healthy", partial(mistaken.before_a_write, seconds=2), EVERY, ("likely",)
    ),
    Trial(
        "a copy waited for",
        "peer",
        "nbd-silent",
        partial(mistaken.before_a_write, seconds=300),
        NOT_THE_OLDEST,
        ("proven",),
    ),
    Trial("one of two servers", "peer", "nbd-silent", mistaken.one_of_two_servers, EVERY, ("proven",), "disk vd1"),
    Trial("no descriptor left", "control", "descriptors-exhausted", mistaken.without_descriptors, EVERY, ("proven",)),
)


@on_each_qemu(TRIALS)
def test_it_is_told_for_what_it_is(trial: Trial, label: str, tmp_path: Path) -> None:
    with trial.set_up(lab.build(label)) as it:
        verdict = captured(it.vm.pid, tmp_path)
        trial.assert_told(verdict)
        assert all(name in verdict.objects for name in it.names if trial.where != "none"), verdict


@pytest.mark.parametrize("label", EVERY)
def test_a_guest_that_talks_to_a_terminal_nobody_opened_is_no_wedge_of_qemu_s(label: str, tmp_path: Path) -> None:
    with mistaken.console_to_a_terminal(lab.build(label), stops=False) as it:
        verdict = captured(it.vm.pid, tmp_path)
    assert verdict.where in {"none", "guest"}, verdict  # it talks without a pause: a busy host gives time to see that
