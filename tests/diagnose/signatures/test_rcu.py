"""A thread that waits for RCU's callbacks is told whichever it is, and not where it went on."""

from __future__ import annotations

from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

FRAMES = ("syscall", "qemu_event_wait", "drain_call_rcu", "qmp_device_del")
WAIT = "202 0x55d000300000 0x0 0xffffffff 0x0 0x0 0x0 0x0 0x0"


def draining(comm: str, *, moves: int = 0, answers: bool = False) -> Diagnosis:
    """Return what is said of a VM with one thread of this name inside drain_call_rcu()."""
    case = e.Case(version="10.0.2")
    case.idle_threads()
    task = next(each for each in case.tasks if each.comm == comm)
    task.syscall, task.stack, task.frames = WAIT, e.IDLE_STACK, FRAMES
    task.switches, task.cpu_ns = moves, moves * e.SECOND
    if answers:
        case.monitor()
        case.disks(e.disk("d0"))
    else:
        case.dead_monitor()
    return diagnose(gather_facts(case.bundle()))


def test_the_main_thread_that_waits_for_rcu_is_the_cause_of_a_dead_monitor() -> None:
    found = draining("qemu-system-x86")
    assert found.signature == "rcu-drain-wait"
    assert "The main thread" in found.headline


def test_another_thread_that_waits_for_rcu_is_told_by_its_name() -> None:
    found = draining("CPU 0/KVM")
    assert "rcu-drain-wait" in {found.signature, *(each.signature for each in found.secondary)}
    assert any("CPU 0/KVM" in name for name in found.objects)


def test_a_wait_for_rcu_that_ended_meanwhile_is_none() -> None:
    assert "rcu-drain-wait" in {each.signature for each in draining("CPU 0/KVM", moves=900, answers=True).ruled_out}
    assert "rcu-drain-wait" in {each.signature for each in draining("qemu-system-x86", answers=True).ruled_out}
