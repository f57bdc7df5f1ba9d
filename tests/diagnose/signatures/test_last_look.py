"""What changed between the looks: the last one says whether the next request will wait."""

from __future__ import annotations

import msgspec

from autopsy.bundle import layout, records
from autopsy.bundle.sections import Section, render
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

PATH = "/run/nbd.sock"
FROZEN = ("percpu_rwsem_wait", "__percpu_down_read", "ext4_buffered_write_iter", "vfs_write")
WRITES = "18 0x9 0x7f0000001000 0x200 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def server(state: str) -> list[Section]:
    return [
        Section("peer/900/comm", b"qemu-nbd\n"),
        Section("peer/900/status", f"Name:\tqemu-nbd\nState:\t{state}\n".encode()),
    ]


def told(first: str, last: str | None) -> Diagnosis:
    """Return what is said of a VM whose requests flowed, with its server in these states at the two looks."""
    case = e.Case()
    case.idle_threads()
    case.monitor()
    case.disks(e.disk("d0", "vd0", before=100, after=140, driver="nbd", file=f"nbd+unix:///?socket={PATH}"))
    case.ends = [records.SocketEnd(fd=9, inode=7, family="unix", state="ESTAB", remote=PATH, peer_pids=(900,))]
    case.peer_sections = server(first)
    bundle = case.bundle()
    if last is not None:
        bundle.files[layout.evidence(layout.SECOND_EXPOSURE, layout.SOCKET_ENDS)] = msgspec.json.encode(case.ends)
        bundle.files[layout.evidence(layout.SECOND_EXPOSURE, layout.SOCKETS)] = render(server(last))
    return diagnose(gather_facts(bundle))


def test_a_server_that_was_stopped_since_keeps_the_vm_from_being_proven_well() -> None:
    found = told("S (sleeping)", "T (stopped)")
    assert (found.where, found.confidence) == ("none", "likely")
    assert "Nothing is stuck yet" in found.headline
    assert any(cite.file.startswith("evidence/second-exposure/") for link in found.chain for cite in link.cites)


def test_one_that_was_stopped_and_goes_on_holds_nothing_up() -> None:
    found = told("T (stopped)", "S (sleeping)")
    assert (found.where, found.confidence) == ("none", "proven")


def test_where_nobody_looked_twice_the_first_look_counts() -> None:
    assert "Nothing is stuck yet" in told("T (stopped)", None).headline


def worker(first: tuple[str, ...], last: tuple[str, ...]) -> Diagnosis:
    case = e.Case()
    case.idle_threads()
    task = next(task for task in case.tasks if task.comm == "worker")
    states = {FROZEN: ("D", WRITES)}
    task.state, task.syscall = states.get(first, ("S", e.IDLE_WORKER))
    task.stack, task.switches = first, 40
    later_state, later_call = states.get(last, ("S", e.IDLE_WORKER))
    task.later = {"state": later_state, "syscall": later_call, "stack": last}
    case.monitor()
    case.disks(e.disk("d0", "vd0", before=100, after=140))
    return diagnose(gather_facts(case.bundle()))


def test_a_worker_that_came_to_a_frozen_file_system_since_keeps_the_vm_from_being_proven_well() -> None:
    found = worker(e.IDLE_STACK, FROZEN)
    assert (found.where, found.confidence) == ("none", "likely")
    assert any("frozen file system" in link.text for link in found.chain)


def test_one_that_came_out_of_it_does_not() -> None:
    found = worker(FROZEN, e.IDLE_STACK)
    assert (found.where, found.confidence) == ("none", "proven")
