"""Requests behind a coroutine mutex, and what its holder does; built from the documented fields."""

from __future__ import annotations

import msgspec

from autopsy.bundle import records
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support.built import evidence as e

MUTEX = 0x55D0_0000_2000


def behind(case: e.Case, holder: int, waiters: tuple[int, ...], **more: object) -> Diagnosis:
    """Diagnose a case whose coroutines `waiters` wait for a mutex that `holder` has."""
    case.monitor()
    case.disks(e.disk("drive0", "vd0"))
    mutex = records.CoMutex(address=MUTEX, locked=1 + len(waiters), holder=holder, waiters=waiters)
    graph = records.LockGraph(mutexes=(), others=(), cycles=(), comutexes=(mutex,))
    case.locks = msgspec.structs.replace(graph, **more)
    return diagnose(gather_facts(case.bundle()))


def waiting(number: int) -> tuple[e.Case, tuple[int, ...]]:
    case = e.Case()
    case.idle_threads(iothreads=1)
    case.parked(e.MUTEX, number)
    return case, tuple(each.address for each in case.coroutines)


def sentences(found: Diagnosis) -> str:
    return " ".join(claim.text for claim in found.chain)


def test_an_orphaned_mutex_is_the_cause_and_its_holder_has_ended() -> None:
    case, waiters = waiting(3)
    found = behind(case, 0x7F5000000000, waiters)
    assert (found.where, found.signature, found.confidence) == ("block", "co-mutex-wait", "proven")
    assert "coroutine 0x7f5000000000, has ended: nobody will unlock it" in sentences(found)
    assert any(node.label == "a coroutine that has ended" for node in found.waits.nodes)


def test_a_ring_of_coroutine_mutexes_is_the_cause() -> None:
    case, (first, second) = waiting(2)
    other = records.CoMutex(address=MUTEX + 64, locked=2, holder=second, waiters=(first,))
    mutex = records.CoMutex(address=MUTEX, locked=2, holder=first, waiters=(second,))
    found = behind(case, first, (second,), comutexes=(mutex, other), knots=((first, second),))
    assert (found.where, found.signature, found.confidence) == ("block", "co-mutex-wait", "proven")
    assert "waits in turn for one of these requests" in sentences(found)
    assert any(edge.in_cycle for edge in found.waits.edges)


def test_a_holder_that_waits_for_a_server_is_behind_that() -> None:
    case, waiters = waiting(3)
    case.parked(e.NBD, 1)
    found = behind(case, case.coroutines[-1].address, waiters)
    assert found.signature == "nbd-silent"
    assert "co-mutex-wait" in {each.signature for each in found.secondary}
    edges = {(edge.waiter, edge.holder) for edge in found.waits.edges}
    assert (f"comutex {MUTEX:#x}", "requests NBD_REPLY") in edges


def test_a_holder_that_runs_is_named_with_its_thread() -> None:
    case, waiters = waiting(2)
    holder = 0x7F5000000000
    running = msgspec.structs.replace(case.coroutines[0], address=holder, state="running", frames=())
    case.coroutines.append(running)
    entered = (records.Entered(coroutine=holder, tid=e.PID + 50),)
    found = behind(case, holder, waiters, entered=entered)
    assert found.signature == "co-mutex-wait"
    assert found.confidence == "likely"
    assert f"runs on thread {e.PID + 50}" in sentences(found)


def test_no_word_is_said_of_a_mutex_that_nobody_waits_for_there() -> None:
    case = e.Case()
    case.idle_threads()
    found = behind(case, 0, ())
    assert (found.where, found.signature) == ("none", "healthy")
