"""A QEMU whose throttle group has deadlocked is told for that, and what would take its monitor away is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autopsy.capture.step import Collected, Skipped, TimedOut
from autopsy.drill.machine import Machine
from support import fake_qmp, lab
from support.asking import a_monitor, capture_of
from support.verdicts import captured

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def deadlocked() -> Iterator[Machine]:
    """Return one for both: to bring it about takes a quarter of a minute."""
    with lab.throttle_deadlock() as machine:
        yield machine


def test_the_throttle_deadlock_is_proven_and_its_monitor_is_left_alive(deadlocked: Machine, tmp_path: Path) -> None:
    verdict = captured(deadlocked.pid, tmp_path)
    (asked,) = (each for each in verdict.answer["steps"] if each["name"] == "qmp.query-block")
    assert asked["outcome"] == "Skipped"
    assert "a mutex that it owns itself" in asked["why"]
    assert (verdict.where, verdict.signature) == ("throttle", "throttle-lock-self-deadlock")
    assert verdict.confidence == "proven"
    assert deadlocked.qmp("query-status")["status"] == "running"


def test_a_throttle_deadlock_is_not_made_worse(deadlocked: Machine, short: Path) -> None:
    with capture_of(short, deadlocked.pid, a_monitor(deadlocked.monitor)) as capture:
        capture.witness()
        assert isinstance(capture.query_status(), Collected)
        outcome = capture.query_block()
        assert isinstance(outcome, Skipped)
        assert "waits for a mutex that it owns itself" in outcome.why
        assert isinstance(capture.ask_again(), Collected)
        assert fake_qmp.ask(deadlocked.monitor, "query-status")["status"] == "running"
        # That the guard is right is shown last: the question takes the main loop away for good.
        asked = capture.query_block(ask_anyway=True)
        assert isinstance(asked, TimedOut)
        assert asked.why.startswith("query-block: no answer in 2.0 s; asked anyway, although IO iothread")
        assert capture.throttle_groups(ask_anyway=True) == Skipped("query-block was not answered in qmp.query-block")
