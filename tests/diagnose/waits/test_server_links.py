"""A server that asks another in turn is told with the one that stands still, and no further than that was seen."""

from __future__ import annotations

import msgspec
import pytest

from autopsy.bundle import layout
from autopsy.bundle.other_programs import ServerLink
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

STOPPED, SLEEPS = "T (stopped)", "S (sleeping)"


def program(pid: int, name: str, state: str) -> list[Section]:
    status = f"Name:\t{name}\nState:\t{state}\n"
    return [Section(f"peer/{pid}/comm", f"{name}\n".encode()), Section(f"peer/{pid}/status", status.encode())]


def over(*links: tuple[int, int], stopped: frozenset[int] = frozenset(), case: e.Case | None = None) -> Diagnosis:
    """Return what is said of requests at program 900, where each asks the other in turn."""
    case = case or cases.nbd()
    pids = sorted({900, *(pid for link in links for pid in link)})
    case.peer_sections = [
        section for pid in pids for section in program(pid, f"daemon{pid}", STOPPED if pid in stopped else SLEEPS)
    ]
    fake = case.bundle()
    told = msgspec.json.encode([ServerLink(pid=pid, remote="/run/x", peer_pids=(other,)) for pid, other in links])
    files = dict(fake.files)
    for step in (layout.PROC_FDS, layout.SECOND_EXPOSURE):
        files[layout.evidence(step, layout.SERVER_LINKS)] = told
    return diagnose(gather_facts(e.Fake(fake.manifest, files)))


@pytest.mark.parametrize(
    ("links", "says"),
    [
        (((900, 901),), "its process 900 (daemon900) is itself a client of daemon901 901, which is stopped"),
        (((900, 902), (902, 901)), "is itself a client of daemon902 902, that of daemon901 901, which is stopped"),
    ],
)
def test_the_server_that_the_silent_one_asks_is_named_and_that_it_waits_for_it_is_not_proven(
    links: tuple[tuple[int, int], ...], says: str
) -> None:
    found = over(*links, stopped=frozenset({901}))
    assert (found.signature, found.confidence) == ("nbd-silent", "likely")
    assert found.headline.endswith(says)
    assert {"daemon900 900", "daemon901 901"} <= set(found.objects)
    assert [node.label for node in found.waits.nodes if node.end] == ["daemon901 901"]
    assert any(advice.command == "kill -CONT 901" for advice in found.advice)
    steps = [each.text for each in found.chain if "has made a connection to" in each.text]
    assert len(steps) == len(links)
    assert "to daemon901 901, State T: whether it waits for that one was not seen" in steps[-1]


def test_one_that_asks_only_who_goes_on_is_silent_and_no_more_is_said() -> None:
    found = over((900, 901))
    assert found.headline.endswith(": it is connected, and silent")
    assert not any("901" in name for name in found.objects)


def test_one_that_is_stopped_itself_is_the_end_of_the_way() -> None:
    found = over((900, 901), stopped=frozenset({900, 901}))
    assert found.confidence == "proven"
    assert "its process 900 (daemon900) is stopped" in found.headline
    assert not any("901" in name for name in found.objects)


def test_a_way_that_leads_back_ends() -> None:
    assert over((900, 901), (901, 902), (902, 900)).headline.endswith(": it is connected, and silent")


def test_however_many_ask_one_another_each_is_looked_at_once() -> None:
    everybody = range(900, 960)
    assert over(*((one, other) for one in everybody for other in everybody)).signature == "nbd-silent"
    chain = tuple((pid, pid + 1) for pid in range(900, 5000))
    assert over(*chain, stopped=frozenset({4000})).headline.endswith(": it is connected, and silent")
