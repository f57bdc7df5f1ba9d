"""A thread in open(2) of a FIFO, or in wait4(2), and the processes that it waits for."""

from __future__ import annotations

import msgspec

from autopsy.bundle import layout, records
from autopsy.bundle.other_programs import FifoOpening, ProcessWait
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


WAIT4 = "61 0x384 0x7f0000000000 0x0 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def waiting(*peers: int, still: tuple[int, ...] = ()) -> Diagnosis:
    """Return what is said of a main thread that waits for a child; `still` are stopped."""
    case = e.Case()
    case.idle_threads()
    main = case.tasks[0]
    main.syscall, main.stack, main.cpu_ns, main.switches = WAIT4, ("do_wait", "kernel_wait4"), 0, 0
    case.main_loop = records.MainLoop(tid=e.PID, state="blocked in a system call", under="wait4")
    case.asked("(greeting)", {"QMP": {}}, outcome="greeted")
    case.asked("qmp_capabilities", None, outcome="no answer")
    for pid in peers:
        state = "T (stopped)" if pid in still else "S (sleeping)"
        case.peer_sections.append(Section(f"peer/{pid}/comm", b"script\n"))
        case.peer_sections.append(Section(f"peer/{pid}/status", f"Name:\tscript\nState:\t{state}\n".encode()))
    fake = case.bundle()
    told = msgspec.json.encode([ProcessWait(tid=e.PID, kind="child", peer_pids=peers)])
    path = layout.evidence(layout.PROC_FDS, layout.PROCESS_WAITS)
    return diagnose(gather_facts(e.Fake(fake.manifest, {**fake.files, path: told})))


def test_a_child_that_is_waited_for_is_where_the_waiting_ends() -> None:
    found = waiting(900)
    assert (found.signature, found.confidence) == ("main-loop-blocked", "proven")
    assert found.headline.endswith("its loop does not come round: script 900")
    assert "script 900" in found.objects
    assert [node.label for node in found.waits.nodes if node.end] == ["script 900"]


def test_of_several_the_one_that_is_stopped_is_named() -> None:
    assert waiting(900, 901, still=(901,)).headline.endswith(": script 901, which stands still")
    assert waiting(900, 901).headline.endswith(": one of script 900, script 901")


def test_without_any_no_more_is_said_than_that_a_child_has_to_end() -> None:
    assert waiting().headline.endswith("for a child process to end, and its loop does not come round")
