"""A thread that waits for a condition waits for whoever signals it; where nobody knows, for the condition itself."""

from __future__ import annotations

from typing import Any

import pytest

from autopsy.diagnose.verdict import diagnose
from autopsy.diagnose.waits import graph
from autopsy.diagnose.waits.wait import How, Wait
from autopsy.facts import subjects
from autopsy.facts.gather import gather_facts
from support.built import cases
from support.built import evidence as e

WAITING = "202 0x55d000300000 0x189 0x0 0x0 0x0 0xffffffff 0x7f2000000000 0x7f0000000000"
COND = ("__futex_abstimed_wait_common64", "__pthread_cond_wait_common", "___pthread_cond_wait", "qemu_cond_wait_impl")
SEM = ("syscall", "", "___pthread_cond_timedwait64", "", "qemu_cond_timedwait_impl", "qemu_sem_timedwait")


def waits_of(tid: int, frames: tuple[str, ...], comm: str = "IO iothread0", **more: Any) -> tuple[list[Wait], e.Case]:
    case = cases.healthy_idle()
    case.thread(tid, comm, syscall=WAITING, stack=e.IDLE_STACK, frames=frames, **more)
    found = graph.build(gather_facts(case.bundle()))
    assert found.trouble == ()
    return [wait for wait in found.waits if wait.waiter == subjects.Thread(tid)], case


def test_who_waits_for_a_vcpu_s_work_waits_for_the_vcpus_that_have_not_done_it() -> None:
    (wait,), _ = waits_of(e.PID + 70, (*COND, "do_run_on_cpu", "cpu_synchronize_state"))
    assert (wait.on, wait.how) == (subjects.Thread(e.PID + 2), How.SIGNALLED_BY)


@pytest.mark.parametrize("frames", [(*COND, "unheard_of"), (*SEM, "unheard_of")])
def test_a_condition_that_nobody_knows_is_an_end_with_its_address_and_function(frames: tuple[str, ...]) -> None:
    (wait,), case = waits_of(e.PID + 70, frames)
    assert wait.on == subjects.Condition(0x55D000300000, "unheard_of")
    found = diagnose(gather_facts(case.bundle()))
    assert found.signature == "thread-asleep"
    assert "for a condition in unheard_of" in " ".join(claim.text for claim in found.chain)
    assert any(node.label == "the condition at 0x55d000300000, in unheard_of" for node in found.waits.nodes)


@pytest.mark.parametrize(
    "frames",
    [
        (*COND, "qemu_wait_io_event", "kvm_vcpu_thread_fn"),  # a vCPU at rest
        (*SEM, "", "worker_thread"),  # what is in between has no name
        (*COND, ""),
        ("syscall", "qemu_event_wait", "call_rcu_thread"),
        COND,
    ],
)
def test_a_thread_that_rests_waits_for_nobody(frames: tuple[str, ...]) -> None:
    waits, case = waits_of(e.PID + 70, frames, comm="worker")
    assert waits == []
    assert diagnose(gather_facts(case.bundle())).signature == "healthy"


SENDING = "46 0x1c 0x7f2000000100 0x0 0x0 0x0 0x0 0x7f2000000000 0x7f0000000000"


def test_a_migration_waits_for_the_channels_that_send_and_not_for_one_that_has_no_work() -> None:
    case = cases.healthy_idle()
    case.thread(e.PID + 71, "mig/src/send_0", syscall=SENDING, stack=("sock_alloc_send_pskb",))
    case.thread(e.PID + 72, "mig/src/send_1", syscall=WAITING, stack=e.IDLE_STACK)
    case.thread(e.PID + 70, "mig/src/main", syscall=WAITING, stack=e.IDLE_STACK, frames=(*SEM, "multifd_send"))
    waits = [wait for wait in graph.build(gather_facts(case.bundle())).waits if wait.how is How.SIGNALLED_BY]
    assert [(wait.waiter, wait.on) for wait in waits] == [
        (subjects.Thread(e.PID + 70), subjects.Thread(e.PID + 71)),
    ]


def test_what_waits_for_a_new_iothread_does_not_wait_for_one_that_is_in_its_loop() -> None:
    case = cases.healthy_idle()
    case.thread(e.PID + 71, "IO iothread0", syscall=e.POLL, stack=e.POLL_STACK)
    case.thread(e.PID + 70, "mig/src/main", syscall=WAITING, stack=e.IDLE_STACK, frames=(*SEM, "iothread_init"))
    (wait,) = [wait for wait in graph.build(gather_facts(case.bundle())).waits if wait.how is How.SIGNALLED_BY]
    assert wait.on == subjects.Condition(0x55D000300000, "iothread_init")
