"""The guard ahead of questions that can take a lock: what it refuses, what it lets pass, and that it is right."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout, sections
from autopsy.bundle.records import FutexWait, GuardLook, MainGlance
from autopsy.bundle.sections import Section
from autopsy.capture.freeze import step as freeze
from autopsy.capture.proc import witness
from autopsy.capture.qmp import guard
from autopsy.capture.qmp.guard import Permit, Unanswerable, Witnessed
from autopsy.capture.step import Collected, Skipped
from support import fake_qmp, lab, looking
from support.asking import DISKS, capture_of_qemu

MAIN = 100
AT_REST = MainGlance(state="S", call="ppoll")
SEEN_AT_REST = GuardLook(moved=(), main=(AT_REST,))
BQL = 0x5555_0000


def thread(
    tid: int, comm: str, *, state: str = "S", wchan: str = "0", stack: str = "", inner: int = 0
) -> list[Section]:
    """Return one thread's sections of tasks.txt, as the kernel prints them."""
    return [
        Section(f"task/{tid}/{name}", text.encode())
        for name, text in (
            ("comm", f"{comm}\n"),
            ("stat", f"{tid} ({comm}) {state} 1 {tid} {tid} 0 -1 4194560 0 0\n"),
            ("status", f"Name:\t{comm}\nNSpid:\t{tid}\t{inner or tid}\nThreads:\t4\n"),
            ("wchan", wchan),
            ("stack", stack),
            ("schedstat", f"{tid} 200 300\n"),
        )
    ]


def wait(tid: int, owner: int, address: int = 0x1000, operation: int = 0x80, value: int = 2) -> FutexWait:
    return FutexWait(tid=tid, address=address, operation=operation, value=value, owner=owner, lock=2)


def seen(*threads: list[Section], waits: tuple[FutexWait, ...] = ()) -> Witnessed:
    tasks = sections.render([each for found in (thread(MAIN, "qemu-kvm"), *threads) for each in found])
    return guard.witnessed(MAIN, tasks, msgspec.json.encode(waits))


def refused(witnessed: Witnessed, now: GuardLook = SEEN_AT_REST) -> str:
    verdict = guard.may_ask(witnessed, now)
    assert isinstance(verdict, Unanswerable)
    return "; ".join(verdict.reasons)


def test_an_idle_vm_may_be_asked() -> None:
    idle = seen(thread(101, "IO io0", wchan="do_sys_poll"), thread(102, "CPU 0/KVM"))
    assert guard.may_ask(idle, SEEN_AT_REST) == Permit()


def test_a_condition_that_is_waited_for_is_no_mutex() -> None:
    sleeping = seen(thread(101, "worker"), waits=(wait(101, 101, operation=0x189),))
    assert guard.may_ask(sleeping, SEEN_AT_REST) == Permit()


def test_a_mutex_that_its_own_waiter_owns_forbids_it() -> None:
    dead = seen(thread(123, "IO iothread4"), waits=(wait(123, 123),))
    assert refused(dead) == "IO iothread4 (tid 123) waits for a mutex that it owns itself"


def test_a_ring_of_waiters_is_told_once() -> None:
    threads = [thread(tid, f"t{tid}") for tid in (1, 2, 3)]
    ring = seen(*threads, waits=(wait(1, 2, 0x10), wait(2, 3, 0x20), wait(3, 1, 0x30)))
    assert refused(ring) == "t1 (tid 1) and t2 (tid 2) and t3 (tid 3) wait for each other's mutexes"


def test_who_is_behind_a_deadlock_is_told_too() -> None:
    threads = [thread(tid, f"t{tid}") for tid in (1, 2, 3)]
    pile = seen(*threads, waits=(wait(1, 1), wait(2, 1), wait(3, 1)))
    assert refused(pile) == (
        "t1 (tid 1) waits for a mutex that it owns itself; t2 (tid 2) (like 1 more) waits for a mutex of t1 (tid 1)"
    )


def test_an_owner_is_known_by_the_tid_of_its_own_namespace() -> None:
    inside = seen(thread(9123, "IO io0", inner=7), waits=(wait(9123, 7),))
    assert "it owns itself" in refused(inside)
    other = seen(thread(9123, "IO io0", inner=7), thread(7, "stranger", inner=1), waits=(wait(9123, 7),))
    assert "it owns itself" in refused(other)


def test_an_uninterruptible_sleep_forbids_it_and_says_where() -> None:
    deep = [thread(tid, "worker", state="D", wchan="percpu_rwsem_wait") for tid in (5, 6, 7)]
    assert refused(seen(*deep)) == "worker (tid 5) (like 2 more) is in an uninterruptible sleep (percpu_rwsem_wait)"


@pytest.mark.parametrize(
    ("wchan", "stack"),
    [("request_wait_answer", ""), ("0", "[<0>] request_wait_answer+0x10/0x20\n[<0>] fuse_simple_request+0x1\n")],
)
def test_a_wait_for_a_fuse_daemon_forbids_it(wchan: str, stack: str) -> None:
    waiting = seen(thread(5, "worker", wchan=wchan, stack=stack))
    assert refused(waiting) == "worker (tid 5) waits for a FUSE daemon"


def test_a_fuse_daemon_that_waits_for_work_is_idle() -> None:
    serving = seen(thread(5, "worker", stack="[<0>] fuse_dev_do_read+0x10/0x20\n"))
    assert guard.may_ask(serving, SEEN_AT_REST) == Permit()


@pytest.mark.parametrize("state", ["T", "t"])
def test_a_stopped_thread_forbids_it(state: str) -> None:
    assert refused(seen(thread(5, "worker", state=state))) == "worker (tid 5) is stopped or traced"


def test_what_has_moved_since_was_not_stuck() -> None:
    busy = seen(
        thread(5, "worker", state="D"),
        thread(6, "CPU 0/KVM"),
        thread(7, "IO io0"),
        waits=(wait(6, MAIN, BQL), wait(7, 7)),
    )
    assert isinstance(guard.may_ask(busy, SEEN_AT_REST), Unanswerable)
    assert guard.may_ask(busy, GuardLook(moved=(5, 6, 7), main=(AT_REST,))) == Permit()


def test_a_main_thread_that_polls_while_it_owns_what_others_want_forbids_it() -> None:
    nested = seen(thread(6, "CPU 0/KVM"), waits=(wait(6, MAIN, BQL),))
    owns = GuardLook(moved=(6,), main=(MainGlance(state="S", call="ppoll", owned=(BQL,)),) * 5)
    assert refused(nested, owns) == (
        "the main thread (tid 100) polls inside another wait: it owns a mutex that CPU 0/KVM (tid 6) waited for"
    )


@pytest.mark.parametrize(
    ("glance", "words"),
    [
        (MainGlance(state="S", call="futex", waits_for_mutex=True), "waits for a mutex"),
        (MainGlance(state="S"), "is in a system call (state S), not in its loop"),
        (MainGlance(state="T", call="ppoll", owned=(BQL,)), "is stopped or traced"),
        (MainGlance(state="t"), "is stopped or traced"),
        (MainGlance(state="D"), "is in a system call (state D)"),
    ],
)
def test_a_main_thread_that_cannot_take_a_question_forbids_it(glance: MainGlance, words: str) -> None:
    witnessed = seen(thread(6, "CPU 0/KVM"), waits=(wait(6, MAIN, BQL),))
    assert words in refused(witnessed, GuardLook(moved=(6,), main=(glance,) * 5))


@pytest.mark.parametrize("rest", [AT_REST, MainGlance(state="R"), MainGlance(state="R", owned=(BQL,))])
def test_one_glance_at_a_loop_that_turns_is_enough(rest: MainGlance) -> None:
    restless = MainGlance(state="S", call="futex", waits_for_mutex=True)
    assert guard.may_ask(seen(), GuardLook(moved=(), main=(restless, restless, rest))) == Permit()


def test_a_main_thread_that_was_not_seen_again_forbids_it() -> None:
    assert "was not seen again" in refused(seen(), GuardLook(moved=(), main=()))


@given(tasks=st.binary(), waits=st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 9), st.integers(0, 3))))
def test_any_evidence_gives_a_verdict(tasks: bytes, waits: list[tuple[int, int, int]]) -> None:
    threads = b"".join(sections.render(thread(tid, "x" * tid)) for tid in range(1, 9))
    futexes = msgspec.json.encode([wait(tid, owner, address) for tid, owner, address in waits])
    for found in (tasks, threads, threads + tasks):
        verdict = guard.may_ask(guard.witnessed(MAIN, found, futexes), SEEN_AT_REST)
        assert isinstance(verdict, Permit | Unanswerable)
        assert not isinstance(verdict, Unanswerable) or all(each.isprintable() for each in verdict.reasons)


def test_names_that_a_guest_has_chosen_are_safe_to_print() -> None:
    evil = seen(thread(5, "\x1b[2J\x07", state="D"))
    assert refused(evil).isprintable()


# Real QEMUs.


@pytest.mark.live
def test_a_real_idle_vm_may_be_asked(build: lab.Build, short: Path) -> None:
    with capture_of_qemu(short, build, *DISKS) as (capture, _):
        capture.witness()
        assert guard.judge_monitor(capture.scene(layout.QUERY_BLOCK)) == Permit()


@pytest.mark.live
def test_a_stopped_vm_is_refused_and_once_it_runs_again_it_is_not(short: Path) -> None:
    with capture_of_qemu(short, "7.2") as (capture, machine):
        with lab.stopped(machine):
            capture.witness()
            verdict = guard.judge_monitor(capture.scene(layout.QUERY_BLOCK))
            assert isinstance(verdict, Unanswerable)
            assert "is stopped or traced" in verdict.reasons[0]
        assert guard.judge_monitor(capture.scene(layout.QUERY_BLOCK)) == Permit()


@pytest.mark.live
def test_a_file_whose_server_is_stopped_keeps_us_from_asking_for_disks_even_where_no_thread_waits(short: Path) -> None:
    with lab.folder() as place, lab.fuse(lab.disk(place / "d")) as export:
        drive = ("-drive", f"if=none,id=disk0,format=raw,file={export.file}")
        with capture_of_qemu(short, "7.2", *drive, "-device", "virtio-blk-pci,drive=disk0") as (capture, machine):
            capture.witness()
            assert guard.judge_monitor(capture.scene(layout.QUERY_BLOCK)) == Permit()
            with lab.stopped(export.process):
                verdict = guard.judge_monitor(capture.scene(layout.QUERY_BLOCK))
                assert isinstance(verdict, Unanswerable)
                assert verdict.reasons[0].startswith(f"{export.file} does not tell its size")
                assert isinstance(capture.query_status(), Collected)
                assert isinstance(capture.query_block(), Skipped)
                assert machine.qmp("query-status")["running"]


SELF_DEADLOCK = """
import ctypes, select, threading
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
def lock_twice():
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
threading.Thread(target=lock_twice, daemon=True).start()
select.poll().poll()
"""


@pytest.mark.live
def test_a_deadlock_is_still_one_after_the_freeze_has_woken_it_for_an_instant(tmp_path: Path) -> None:
    with looking.python(SELF_DEADLOCK) as pid:
        lab.until("it locked twice", lambda: len(lab.self_deadlocked(pid)) == 1)
        with looking.scene(pid, tmp_path) as at:
            witness.witness_threads(at)
        with looking.scene(pid, tmp_path, "freeze") as at:
            assert isinstance(freeze.expose(at), Collected)
        with looking.scene(pid, tmp_path, "qmp.query-block") as at:
            verdict = guard.judge_monitor(at)
        assert isinstance(verdict, Unanswerable)
        assert "waits for a mutex that it owns itself" in " ".join(verdict.reasons)


@pytest.mark.live
def test_without_a_witness_nothing_risky_is_asked_unless_the_operator_insists(short: Path) -> None:
    with capture_of_qemu(short, "7.2", *DISKS) as (capture, _):
        assert isinstance(capture.query_status(), Collected)
        outcome = capture.query_block()
        assert outcome == Skipped("the witness left no tasks.txt: query-block could block the main loop")
        assert capture.told(layout.QUERY_BLOCK) == []
        asked = capture.query_block(ask_anyway=True)
        assert isinstance(asked, Collected)
        assert asked.why.endswith(f" answers; asked anyway, although {outcome.why}")
        assert isinstance(capture.throttle_groups(), Skipped)
        assert isinstance(capture.throttle_groups(ask_anyway=True), Collected)


@pytest.mark.live
def test_a_worker_that_waits_for_a_hung_fuse_daemon_forbids_query_block(short: Path) -> None:
    lab.need_root()
    image = lab.disk(short / "image", mebibytes=4)
    with lab.fuse(image) as export:
        drive = f"if=none,id=d0,file={export.file},format=raw,cache=writethrough"
        with capture_of_qemu(short, "7.2", "-drive", drive, "-device", "virtio-blk-pci,drive=d0") as (capture, machine):
            with lab.stopped(export.process):
                machine.qemu_io("d0", "aio_write 0 4k")
                lab.until("a worker waits for the daemon", lambda: lab.waits_in(machine.pid, "request_wait_answer"))
                capture.witness()
                assert isinstance(capture.query_status(), Collected)
                outcome = capture.query_block()
                assert isinstance(outcome, Skipped)
                assert "waits for a FUSE daemon: query-block could block the main loop" in outcome.why
                assert isinstance(capture.ask_again(), Collected)
            assert fake_qmp.ask(machine.monitor, "query-status")["status"] == "running"
