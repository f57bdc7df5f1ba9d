"""A request that stands while its disk's others come and go: told where hardly one is in flight, doubted elsewhere."""

from __future__ import annotations

from typing import Literal

import pytest

from autopsy.bundle import layout
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

URI = "nbd+unix:///?socket=/run/nbd.sock"


def told(
    since: e.Since,
    *,
    took: float,
    same_request: bool = False,
    done: int = 40,
    awake: Literal["", "running", "parked"] = "",
) -> Diagnosis:
    """Return what is said of a request at an NBD server whose disk's others took `took` seconds of the 5 together."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.NBD, since=since, same_request=same_request)
    if awake:
        case.awake_at_first(awake)
    case.monitor()
    case.disks(e.disk("d0", "vd0", before=100, after=100 + done, file=URI))
    for exchange in case.exchanges[layout.SECOND_EXPOSURE]:
        if exchange.question == "query-blockstats":
            exchange.answer[0]["stats"]["wr_total_time_ns"] = int(took * e.SECOND)
    case.command_line = ("-drive", f"file={URI},format=raw,if=none,id=d0")
    return diagnose(gather_facts(case.bundle()))


def test_what_stands_on_a_disk_that_is_hardly_ever_busy_is_a_request_that_was_forgotten() -> None:
    found = told("stuck", took=0.02)
    assert (found.signature, found.confidence) == ("nbd-silent", "likely")


def test_what_stands_on_a_busy_disk_may_be_one_request_after_another_and_is_not_proven_to_be_well() -> None:
    found = told("stuck", took=4.0)
    assert (found.signature, found.confidence) == ("healthy", "likely")
    assert any("was not seen to go on" in link.text for link in found.chain), found.chain
    assert found.headline.startswith("Nothing is stuck, but 1 request was not seen to go on")
    assert not any("all moved on" in link.text for link in found.chain)
    assert found.advice[0].command == f"autopsy capture pid:{e.PID}"


@pytest.mark.parametrize("took", [0.02, 4.0])
def test_what_moves_is_well(took: float) -> None:
    found = told("moved", took=took)
    assert found.signature == "healthy"
    assert "but" not in found.headline
    assert any("all moved on" in link.text for link in found.chain)
    assert not any(step.command.startswith("autopsy capture") for step in found.advice)


def test_a_request_that_moves_and_never_ends_is_told() -> None:
    found = told("moved", took=0.02, same_request=True)
    assert (found.signature, found.confidence) == ("healthy", "likely")
    assert "a request of disk vd0 (d0) was in flight at both looks" in found.headline
    assert "while 80 others came and ended" in found.headline


@pytest.mark.parametrize(("awake", "since"), [("parked", "moved"), ("running", "new")])
@pytest.mark.parametrize("same_request", [True, False])
def test_one_that_the_first_look_met_awake_is_told_by_the_second(
    awake: Literal["running", "parked"], since: e.Since, *, same_request: bool
) -> None:
    found = told(since, took=0.02, same_request=same_request, awake=awake)
    assert found.signature == "healthy"
    assert ("a request of disk vd0 (d0) was in flight at both looks" in found.headline) is same_request
    assert found.confidence == "likely" or not same_request


def test_one_of_a_busy_disk_may_be_another_one_each_time_and_its_doubt_is_told() -> None:
    found = told("moved", took=4.0, same_request=True)
    assert found.headline.startswith("Nothing is stuck, but 1 request was not seen to go on")
    assert found.confidence == "likely"


def test_where_nobody_counted_what_requests_took_none_is_called_forgotten() -> None:
    assert told("stuck", took=0.0).signature == "healthy"
