"""A thread in open(2) of a FIFO, and whoever is in open(2) of its other end."""

from __future__ import annotations

import msgspec

from autopsy.bundle import layout, records
from autopsy.bundle.fifo_opening import FifoOpening
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

OPENING = "257 0xffffff9c 0x7f0000000000 0x0 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def opening(*, peers: tuple[int, ...], state: str = "T (stopped)") -> Diagnosis:
    case = e.Case()
    case.idle_threads()
    main = case.tasks[0]
    main.syscall, main.stack, main.cpu_ns, main.switches = OPENING, ("wait_for_partner", "fifo_open"), 0, 0
    case.main_loop = records.MainLoop(tid=e.PID, state="blocked in a system call", under="openat", path="/run/f")
    case.asked("(greeting)", {"QMP": {}}, outcome="greeted")
    case.asked("qmp_capabilities", None, outcome="no answer")
    case.peer_sections += [
        Section("peer/900/comm", b"writer\n"),
        Section("peer/900/status", f"Name:\twriter\nState:\t{state}\n".encode()),
    ]
    fake = case.bundle()
    told = msgspec.json.encode([FifoOpening(tid=e.PID, path="/run/f", peer_pids=peers)])
    path = layout.evidence(layout.PROC_FDS, layout.FIFO_OPENINGS)
    return diagnose(gather_facts(e.Fake(fake.manifest, {**fake.files, path: told})))


def test_whoever_is_stopped_in_open_of_a_fifo_s_other_end_is_where_the_waiting_ends() -> None:
    found = opening(peers=(900,))
    assert found.signature == "main-loop-blocked"
    assert {"/run/f", "writer 900"} <= set(found.objects)
    assert found.headline.endswith("writer 900 opens its other end, and stands still")
    assert [node.label for node in found.waits.nodes if node.end] == ["writer 900"]
    assert {each.because_of for each in found.secondary} == {"main-loop-blocked"}


def test_one_that_runs_has_not_come_to_it() -> None:
    assert opening(peers=(900,), state="S (sleeping)").headline.endswith("opens its other end, and has not come to it")


def test_where_nobody_opens_it_the_fifo_is_named() -> None:
    found = opening(peers=())
    assert "/run/f" in found.objects
    assert found.headline.endswith("its loop does not come round")
