"""A vCPU that QEMU itself has sleep for a time, as a dirty limit does, waits for nobody."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

NANOSLEEP = "230 0x0 0x0 0x7f0000001000 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
READ = "0 0x9 0x7f0000001000 0x1 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"


def vcpu_in(call: str, *stack: str) -> Diagnosis:
    case = e.Case()
    case.idle_threads()
    for task in case.tasks:
        if task.comm.startswith("CPU "):
            task.syscall, task.stack, task.switches, task.cpu_ns = call, stack, 1, 0
            task.frames = ("clock_nanosleep", "nanosleep", "usleep", "kvm_cpu_exec", "", "start_thread")
    case.monitor()
    case.disks(e.disk("d0", "vd0"))
    case.descriptors[0] = "/dev/null"
    return diagnose(gather_facts(case.bundle()))


def test_a_sleep_for_a_time_is_told_and_is_no_wedge() -> None:
    found = vcpu_in(NANOSLEEP, "hrtimer_nanosleep", "do_nanosleep")
    assert (found.where, found.confidence) == ("none", "proven")
    assert "1 vCPU slept by a timer of QEMU's" in found.headline


def test_the_twin_that_sleeps_in_a_call_without_an_end_is_told() -> None:
    assert vcpu_in(READ, "some_driver_wait").signature == "thread-asleep"


def test_what_a_call_s_first_argument_is_decides_whether_it_is_called_a_descriptor() -> None:
    pause = "34 0x0 0x0 0x0 0x0 0x0 0x0 0x7f0000000000 0x7f0000000000"
    assert not any("/dev/null" in link.text for link in vcpu_in(pause, "do_sys_pause").chain)
