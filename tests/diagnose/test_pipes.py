"""Whoever has the other end of a pipe is told as whoever has that of a socket."""

from __future__ import annotations

from autopsy.bundle import records
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

WRITING = "1 0xb 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
READING = "0 0xb 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def migrating(call: str, stack: str, state: str = "T (stopped)") -> Diagnosis:
    case = cases.healthy_idle()
    case.thread(e.PID + 60, "live_migration", syscall=call, stack=(stack, "vfs_write", "do_syscall_64"))
    case.ends.append(records.SocketEnd(fd=11, inode=77, family="pipe", peer_pids=(900,)))
    case.peer_sections += [
        Section("peer/900/comm", b"zstd\n"),
        Section("peer/900/status", f"Name:\tzstd\nState:\t{state}\n".encode()),
    ]
    return diagnose(gather_facts(case.bundle()))


def test_the_program_at_a_pipe_s_other_end_is_named() -> None:
    found = migrating(WRITING, "pipe_write")
    assert found.signature == "migration-send-blocked"
    assert "zstd 900" in found.objects
    assert found.headline.endswith("sending the VM's state: its process 900 (zstd) is stopped")
    assert "The other end is zstd 900, State T." in {claim.text for claim in found.chain}


def test_one_that_runs_does_not_read() -> None:
    assert migrating(WRITING, "pipe_write", "S (sleeping)").headline.endswith("its reader does not read")


def test_a_thread_that_receives_is_not_said_to_send() -> None:
    assert "is blocked receiving the VM's state" in migrating(READING, "pipe_read").headline


def writing_to_a_fifo(state: str) -> Diagnosis:
    """Return what is said of a main loop that sleeps in a write to a FIFO which another program has, too."""
    case = e.Case()
    case.idle_threads()
    case.tasks[0].syscall, case.tasks[0].cpu_ns, case.tasks[0].switches = WRITING, 0, 0
    case.tasks[0].stack = ("anon_pipe_write", "vfs_write", "do_syscall_64")
    case.main_loop = records.MainLoop(
        tid=e.PID, state="blocked in a system call", under="write", command="qmp_pmemsave"
    )
    case.asked("(greeting)", {"QMP": {}}, outcome="greeted")
    case.asked("qmp_capabilities", None, outcome="no answer")
    case.descriptors[11] = "/run/dump.fifo"
    case.ends.append(records.SocketEnd(fd=11, inode=77, family="pipe", remote="/run/dump.fifo", peer_pids=(900,)))
    case.peer_sections += [
        Section("peer/900/comm", b"gzip\n"),
        Section("peer/900/status", f"Name:\tgzip\nState:\t{state}\n".encode()),
    ]
    return diagnose(gather_facts(case.bundle()))


def test_whoever_should_read_a_fifo_that_the_main_loop_writes_to_is_named() -> None:
    found = writing_to_a_fifo("T (stopped)")
    assert found.signature == "main-loop-blocked"
    assert {"/run/dump.fifo", "gzip 900"} <= set(found.objects)
    assert found.headline.endswith("its loop does not come round: its process 900 (gzip) is stopped")


def test_a_reader_that_runs_is_named_and_not_accused() -> None:
    found = writing_to_a_fifo("S (sleeping)")
    assert "gzip 900" in found.objects
    assert found.headline.endswith("its loop does not come round")
