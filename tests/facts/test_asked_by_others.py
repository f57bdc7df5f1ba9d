"""A disk that goes on has no more requests than its guest asked it for: what else stands is another disk's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopsy.facts.cite import Cite, Known, Unknown
from autopsy.facts.gather import gather_facts
from autopsy.facts.storage.requests import link
from support.built import evidence as e

HERE = Cite("evidence/second-exposure/virtqueues.json")


def owners(*, stuck: int, moving: int, asked: int) -> list[str]:
    """Return whose each request at an NBD server is, where vd0 goes on and vd1's guest has nothing in flight."""
    case = e.Case()
    case.idle_threads()
    case.parked(e.NBD, moving, since="moved")
    case.parked(e.NBD, stuck)
    case.monitor()
    uri = "nbd+unix:///?socket=/run/{}.sock"
    case.disks(
        e.disk("d0", "vd0", before=100, after=140, driver="nbd", file=uri.format(0)),
        e.disk("d1", "vd1", driver="nbd", file=uri.format(1)),
    )
    facts = gather_facts(case.bundle())
    assert isinstance(facts.disks, Known)
    flights = {"vd0": asked, "vd1": 0}
    disks = tuple(replace(disk, in_flight=Known(flights[disk.name], HERE)) for disk in facts.disks.value)
    linked = link(facts.coroutines, Known(disks, HERE), Unknown("", "nobody asked"))
    assert isinstance(linked, Known)
    return [each.disk.value if isinstance(each.disk, Known) else "" for each in linked.value]


def test_an_exact_count_of_nothing_in_flight_is_as_good_as_a_name() -> None:
    assert owners(stuck=0, moving=1, asked=1) == ["vd0"]


@pytest.mark.parametrize("stuck", [2, 5])
def test_what_is_more_than_the_guest_asked_for_and_stands_is_not_said_to_be_the_disk_s_that_goes_on(stuck: int) -> None:
    assert owners(stuck=stuck, moving=1, asked=1) == ["vd0", *[""] * stuck]


def test_as_many_as_the_guest_asked_for_are_its_own() -> None:
    assert owners(stuck=2, moving=0, asked=2) == ["vd0", "vd0"]
