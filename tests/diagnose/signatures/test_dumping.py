"""A QEMU that has crashed and whose core is still being written looks hung, and is told for what it is."""

from __future__ import annotations

import pytest

from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

INTO_FROZEN = ("percpu_rwsem_wait", "mnt_want_write", "do_unlinkat", "vfs_coredump", "get_signal", "do_syscall_64")


def crashed(*stack: str, moves: int = 0) -> e.Case:
    case = e.Case()
    case.idle_threads()
    for task in case.tasks:
        task.state, task.stack, task.cpu_ns, task.switches = "I", ("do_exit", "do_group_exit", "get_signal"), 0, 0
    case.tasks[0] = e.Task(
        e.PID, "qemu-system-x86", state="D", syscall=e.POLL, stack=stack, cpu_ns=moves * e.SECOND, switches=moves * 900
    )
    case.asked("(greeting)", None, outcome="silent")
    return case


def test_a_core_that_goes_into_a_frozen_file_system_is_a_crash_and_says_why_it_does_not_end() -> None:
    found = diagnose(gather_facts(crashed(*INTO_FROZEN).bundle()))
    assert (found.where, found.signature, found.confidence) == ("process", "core-dumping", "proven")
    assert "does not go on: it waits for a frozen file system" in found.headline
    assert ("host-fs-frozen", "core-dumping") in {(each.signature, each.because_of) for each in found.secondary}
    assert found.kill == "futile"


@pytest.mark.parametrize("place", ["vfs_coredump", "do_coredump"])  # since Linux 6.17, and before
def test_a_core_that_is_being_written_is_a_crash_too_and_goes_on(place: str) -> None:
    found = diagnose(gather_facts(crashed("io_schedule", "__dump_emit", place, "get_signal", moves=1).bundle()))
    assert found.signature == "core-dumping"
    assert "does not go on" not in found.headline


def test_a_frozen_file_system_alone_is_no_crash() -> None:
    assert diagnose(gather_facts(cases.frozen_threads().bundle())).signature == "host-fs-frozen"
