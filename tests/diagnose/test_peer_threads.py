"""A program at the other end that listens, and whose threads cannot work, is no healthy one."""

from __future__ import annotations

import pytest

from autopsy.bundle import records
from autopsy.bundle.sections import Section
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

FROZEN = ("percpu_rwsem_wait", "vfs_write", "__x64_sys_pwrite64", "do_syscall_64")
AT_A_DISK = ("io_schedule", "folio_wait_bit", "vfs_write", "do_syscall_64")


def threads(pid: int, state: str, *stack: str) -> list[Section]:
    """Return a program's threads: its main one polls, another is in this state under these names of the kernel's."""
    found = []
    for tid, told, where in ((pid, "S", e.POLL_STACK), (pid + 1, state, stack)):
        parts = {
            "stat": f"{tid} (daemon) {told} 1 1",
            "wchan": where[0] if where else "0",
            "syscall": cases.PWRITE if tid != pid else e.POLL,
            "stack": "".join(f"[<0>] {name}+0x1/0x2\n" for name in where),
        }
        found += [Section(f"peer/{pid}/task/{tid}/{name}", text.encode()) for name, text in parts.items()]
    return found


def back_end(state: str, *stack: str) -> Diagnosis:
    """Return what is said of a VM whose only disk is served by a vhost-user back end with such a thread."""
    case = e.Case(version="10.0.2")
    case.idle_threads()
    case.monitor()
    case.asked("query-blockstats", [])
    case.asked("query-named-block-nodes", [])
    chardev = {"label": "c0", "filename": "unix:/run/vhost", "frontend-open": True}
    case.asked("query-chardev", [chardev])
    case.command_line = (
        *("-chardev", "socket,id=c0,path=/run/vhost", "-device", "vhost-user-blk-pci,id=vd0,chardev=c0"),
    )
    case.ends.append(
        records.SocketEnd(fd=9, inode=9, family="unix", state="ESTAB", remote="/run/vhost", peer_pids=(900,))
    )
    status = b"Name:\tdaemon\nState:\tS (sleeping)\n"
    case.peer_sections += [Section("peer/900/comm", b"daemon\n"), Section("peer/900/status", status)]
    case.peer_sections += threads(900, state, *stack)
    return diagnose(gather_facts(case.bundle()))


def test_a_back_end_whose_thread_waits_for_a_thaw_does_not_serve_and_is_not_called_healthy() -> None:
    found = back_end("D", *FROZEN)
    assert (found.where, found.signature, found.confidence) == ("peer", "vhost-user-silent", "likely")
    assert "a thread of its process 900 (daemon) waits for a frozen file system" in found.headline
    assert any("Thread 901 of daemon 900 was in State D, in pwrite64" in each.text for each in found.chain)


def test_a_back_end_that_is_met_at_its_disk_may_be_healthy_and_that_is_not_proven() -> None:
    found = back_end("D", *AT_A_DISK)
    assert (found.where, found.confidence) == ("none", "likely")
    assert any(each.text.startswith("Not accounted for: Thread 901 of daemon 900") for each in found.chain)


def test_a_back_end_whose_threads_rest_is_well() -> None:
    found = back_end("S", *e.IDLE_STACK)
    assert found.where == "none"
    (left,) = (each.text for each in found.chain if "Not accounted for" in each.text)
    assert "passes QEMU by" in left  # whether it answers the guest, nobody sees


@pytest.mark.parametrize(
    ("status", "wchan", "stack", "sure", "says"),
    [
        ("S (sleeping)", "do_sys_poll", FROZEN, "proven", "a thread of its process 900 (qemu-nbd) waits for a frozen"),
        ("D (disk sleep)", "__refrigerator", ("__refrigerator",), "proven", "is in a frozen control group"),
        ("S (sleeping)", "do_sys_poll", AT_A_DISK, "likely", "it is connected, and silent"),
    ],
)
def test_a_server_is_proven_not_to_answer_where_it_cannot(
    status: str, wchan: str, stack: tuple[str, ...], sure: str, says: str
) -> None:
    case = cases.nbd()
    case.peer_sections = [
        Section("peer/900/comm", b"qemu-nbd\n"),
        Section("peer/900/status", f"Name:\tqemu-nbd\nState:\t{status}\n".encode()),
        Section("peer/900/wchan", wchan.encode()),
        *threads(900, "D", *stack),
    ]
    found = diagnose(gather_facts(case.bundle()))
    assert (found.signature, found.confidence) == ("nbd-silent", sure)
    assert says in found.headline
