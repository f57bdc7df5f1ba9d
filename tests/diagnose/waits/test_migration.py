"""A migration's two ends: a guest's page that has not come waits for whoever sends it, and that is one cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopsy.bundle import layout, records
from autopsy.bundle.sections import Section
from autopsy.cli.json_output import verdict as answer
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

FAULT = ("handle_userfault", "do_anonymous_page", "handle_mm_fault", "exc_page_fault")
RECEIVING = "47 0x13 0x7f0000000000 0x0 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
WRITES = "1 0xd 0x7f0000000000 0x1000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def other_end(case: e.Case, state: str) -> e.Case:
    case.ends += [
        records.SocketEnd(fd=18, inode=6, family="unix", state="LISTEN", local="/run/m", peer_pids=()),
        records.SocketEnd(
            fd=19,
            inode=7,
            family="unix",
            state="ESTAB",
            local="/run/m",
            receive_queue=0,
            send_queue=0,
            peer_pids=(900,),
        ),
    ]
    status = f"Name:\tqemu\nState:\t{state}\n".encode()
    case.peer_sections += [Section("peer/900/comm", b"qemu-system-x86\n"), Section("peer/900/status", status)]
    return case


def postcopy(state: str) -> e.Case:
    case = e.Case(version="10.0.2")
    case.idle_threads(vcpus=2)
    for task in case.tasks:
        if task.comm.startswith("CPU "):
            task.state, task.stack, task.switches, task.cpu_ns = "D", FAULT, 0, 0
    where = ("unix_stream_read_generic", "unix_stream_recvmsg", "sock_recvmsg", "do_syscall_64")
    case.thread(e.PID + 70, "mig/dst/listen", syscall=RECEIVING, stack=where, frames=("recvmsg", "qemu_get_byte"))
    case.monitor()
    case.disks(e.disk("d0"))
    return other_end(case, state)


def test_pages_that_do_not_come_and_their_silent_sender_are_one_cause() -> None:
    found = diagnose(gather_facts(postcopy("T (stopped)").bundle()))
    assert found.signature == "migration-send-blocked"
    assert "qemu-system-x86 900" in found.objects
    assert [each.signature for each in answer(found).causes] == ["migration-send-blocked"]
    assert ("postcopy-page-wait", "migration-send-blocked") in {
        (each.signature, each.because_of) for each in found.secondary
    }


def incoming(state: str) -> e.Case:
    case = e.Case(version="10.0.2")
    case.idle_threads()
    case.asked("(greeting)", {"QMP": {}}, outcome="greeted")
    for step in (layout.QUERY_STATUS, layout.SECOND_EXPOSURE):
        case.asked("query-status", {"status": "inmigrate", "running": False}, step=step)
    return other_end(case, state)


def test_a_vm_that_waits_for_a_stopped_source_names_it() -> None:
    found = diagnose(gather_facts(incoming("T (stopped)").bundle()))
    assert (found.signature, found.confidence) == ("vm-inmigrate", "proven")
    assert found.headline.endswith("the other end of its connection, qemu-system-x86 900, is stopped")
    assert "qemu-system-x86 900" in found.objects


def test_a_vm_whose_source_runs_only_waits() -> None:
    found = diagnose(gather_facts(incoming("S (sleeping)").bundle()))
    assert (found.signature, found.objects) == ("vm-inmigrate", ("VM devvm",))


def snapshot(state: str) -> e.Case:
    """Return a background snapshot whose reader is in that state, and a vCPU that wants to write to a page."""
    case = e.Case(version="7.2.22")
    case.idle_threads(vcpus=2)
    for task in case.tasks:
        if task.comm.startswith("CPU "):
            task.state, task.stack, task.switches, task.cpu_ns = "D", FAULT, 0, 0
    sending = RECEIVING.replace("47 ", "46 ", 1)
    where = ("sock_alloc_send_pskb", "unix_stream_sendmsg", "sock_sendmsg", "do_syscall_64")
    case.thread(e.PID + 70, "bg_snapshot", syscall=sending, stack=where, frames=("sendmsg", "qemu_fflush"))
    case.monitor()
    case.disks(e.disk("d0"))
    return other_end(case, state)


def test_a_page_of_a_background_snapshot_waits_for_its_reader_and_for_no_source() -> None:
    found = diagnose(gather_facts(snapshot("T (stopped)").bundle()))
    assert found.signature == "migration-send-blocked"
    assert "qemu-system-x86 900" in found.objects
    assert [(each.signature, each.because_of) for each in found.secondary if "page" in each.signature] == [
        ("snapshot-page-wait", "migration-send-blocked")
    ]


def dumping(*stack: str, state: str = "S", comm: str = "dump_thread") -> e.Case:
    """Return a VM that is paused for a dump of its memory, whose thread writes to a FIFO, or to a file."""
    case = e.Case(version="10.0.2")
    case.idle_threads()
    case.thread(e.PID + 70, comm, state=state, syscall=WRITES, stack=stack, frames=("write", "qemu_write_full"))
    case.monitor("save-vm")
    case.disks(e.disk("d0", "vd0"))
    return case


@pytest.mark.parametrize("comm", ["dump_thread", "qemu-system-x86"])
def test_a_vm_that_is_paused_for_a_dump_waits_for_the_reader_of_the_dump(comm: str) -> None:
    case = dumping("anon_pipe_write", "vfs_write", comm=comm)
    case.descriptors[13] = "/run/dump"
    case.ends.append(records.SocketEnd(fd=13, inode=0, family="pipe", remote="/run/dump", peer_pids=(900,)))
    case.peer_sections += [
        Section("peer/900/comm", b"collector\n"),
        Section("peer/900/status", b"Name:\tcollector\nState:\tT (stopped)\n"),
    ]
    found = diagnose(gather_facts(case.bundle()))
    assert (found.signature, found.confidence) == ("migration-send-blocked", "proven")
    assert {"/run/dump", "collector 900"} <= set(found.objects)
    assert [(each.signature, each.because_of) for each in found.secondary] == [("vm-saving", "migration-send-blocked")]
    assert [each.signature for each in found.causes] == ["migration-send-blocked"]


def test_a_dump_to_a_file_on_a_frozen_file_system_has_no_reader() -> None:
    found = diagnose(
        gather_facts(dumping("percpu_rwsem_wait", "ext4_file_write_iter", "vfs_write", state="D").bundle())
    )
    assert found.signature == "host-fs-frozen"
    assert not any("reader" in each.headline for each in found.secondary)
    assert [each.signature for each in found.causes] == ["host-fs-frozen"]


def test_the_twin_whose_dump_goes_on_is_paused_for_it_alone() -> None:
    case = dumping("anon_pipe_write", "vfs_write")
    case.tasks[-1].switches = 400
    found = diagnose(gather_facts(case.bundle()))
    assert found.signature == "vm-saving"


def test_a_thread_that_has_ended_since_is_not_blocked() -> None:
    case = dumping("anon_pipe_write", "vfs_write")
    bundle = case.bundle()
    left = replace(case, tasks=[task for task in case.tasks if task.comm != "dump_thread"]).bundle()
    path = layout.evidence(layout.SECOND_EXPOSURE, layout.TASKS)
    bundle.files[path] = left.files[path]
    found = diagnose(gather_facts(bundle))
    assert found.signature == "vm-saving"
    assert "migration-send-blocked" in {each.signature for each in found.ruled_out}
    # What is cut short does not say that a thread has ended.
    bundle.files[path] = left.files[path].partition(b"==> clock/end")[0]
    cut = diagnose(gather_facts(bundle))
    assert "migration-send-blocked" not in {each.signature for each in cut.ruled_out}, cut.signature
