from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from autopsy.capture.freeze import snapshot
from autopsy.capture.freeze import step as freeze
from autopsy.capture.freeze import tracer as cut
from autopsy.capture.step import Collected, Failed
from autopsy.drill.machine import Machine
from autopsy.linux.mappings import MappedProcess
from autopsy.target.guest_ram import guest_ram
from support import freezing, lab, looking
from support.freezing import (
    FAST,
    HELD,
    frames,
    gdb,
    mappings,
    quiet_vm,
    statuses,
    take,
    untouched,
    victim,
    workers_asleep,
)

pytestmark = pytest.mark.live
both_ways = pytest.mark.usefixtures("both_ways")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Return a quiet VM that the tests of this file share."""
    with quiet_vm() as running:
        yield running


@both_ways
def test_threads_in_uninterruptible_sleep_are_read_and_not_waited_for(tmp_path: Path) -> None:
    with workers_asleep(tmp_path) as (running, taken, asleep):
        assert taken.how <= HELD if freezing.walks else taken.how == {"stopped", "from-proc"}
        binary = Path(f"/proc/{running.pid}/exe").resolve()
        stacks = frames(gdb("-ex", "thread apply all bt", binary, taken.path))
        for tid in asleep:
            assert taken.thread(tid).how == ("walked" if freezing.walks else "from-proc")
            assert freezing.walks or "uninterruptible" in taken.thread(tid).why
            assert len(stacks[tid]) >= 4
        lab.until("the writes are done", lambda: not lab.any_thread_in(running.pid, "D"))
        assert running.qmp("query-status")["status"]


VFORK = """
import ctypes
os.mkfifo(place + "/fifo")
libc = ctypes.CDLL(None)
def hang():  # until the child has opened the other end, which it does before it runs its program
    actions = ctypes.create_string_buffer(256)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 0, (place + "/fifo").encode(), os.O_RDONLY, 0)
    words = (ctypes.c_char_p * 2)(b"true", None)
    libc.posix_spawn(ctypes.byref(ctypes.c_int()), b"/bin/true", actions, None, words, (ctypes.c_char_p * 1)(None))
threading.Thread(target=hang, daemon=True).start()
def state(tid):
    with open(f"/proc/self/task/{tid}/stat") as stream:
        return stream.read().rpartition(")")[2].split()[0]
while "D" not in map(state, os.listdir("/proc/self/task")):
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(100)
"""


def wake(place: Path) -> None:
    os.close(os.open(place / "fifo", os.O_RDWR))  # this way it never waits for a reader


@contextmanager
def asleep_in_the_kernel(tmp_path: Path) -> Iterator[int]:
    """Run a process one thread of which is in D: a parent in vfork."""
    with victim(tmp_path, VFORK) as pid:
        try:
            yield pid
        finally:
            wake(tmp_path)


def test_a_thread_that_falls_asleep_once_it_is_seized_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    honest = cut._Tracer._state

    def at_first_it_looks_interruptible(self: cut._Tracer, tid: int) -> tuple[str, bool]:
        state, kernels = honest(self, tid)
        first = tid not in seen
        seen.add(tid)
        return ("S" if state == "D" and first else state), kernels

    monkeypatch.setattr(cut._Tracer, "_state", at_first_it_looks_interruptible)
    with asleep_in_the_kernel(tmp_path) as pid:
        (asleep,) = [int(status["Pid"]) for status in statuses(pid) if status["State"][0] == "D"]
        taken = take(pid, tmp_path)
        assert taken.thread(asleep).how == "from-proc"
        assert "uninterruptible" in taken.thread(asleep).why
        assert taken.thread(pid).how == "stopped"
        assert untouched(pid)
        wake(tmp_path)
        lab.until("the thread has woken, and all run free", lambda: untouched(pid, "RSI"))


def test_a_thread_that_waits_for_the_map_is_a_reason_not_to_stop(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = snapshot.tasks
    monkeypatch.setattr(snapshot, "_waits_for_the_map", lambda _, tid: tid == machine.pid)
    monkeypatch.setattr(freeze, "tasks", lambda *at: tuple(dataclasses.replace(each, state="D") for each in plain(*at)))
    taken = take(machine.pid, tmp_path)
    assert taken.record.stops == ()
    assert "from-proc" in taken.how
    assert "stopped" not in taken.how
    assert any("lock of the memory map" in note for note in taken.record.notes)


@pytest.mark.parametrize(
    ("stack", "answer"),
    [
        ("rwsem_down_write_slowpath down_write_killable vm_mmap_pgoff", "waits"),
        ("rwsem_down_read_slowpath down_read do_user_addr_fault", "waits"),
        ("rwsem_down_write_slowpath ext4_buffered_write_iter vfs_write", "does not"),
        ("folio_wait_bit_common filemap_fault exc_page_fault", "does not"),
        ("percpu_rwsem_wait __percpu_down_read aio_write", "does not"),
    ],
)
def test_a_wait_for_an_inode_is_no_wait_for_the_map(stack: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"[<0>] {function}+0x1/0x2\n" for function in stack.split())
    monkeypatch.setattr(snapshot, "_read", lambda _: lines.encode())
    assert snapshot._waits_for_the_map("/proc/1", 1) is (answer == "waits")


@both_ways
def test_a_stopped_vm_stays_stopped_and_goes_on_when_it_is_continued(machine: Machine, tmp_path: Path) -> None:
    with lab.stopped(machine):
        taken = take(machine.pid, tmp_path)
        assert taken.how <= HELD
        lab.until("it is as it was", lambda: untouched(machine.pid, "T"))
    lab.until("it runs", lambda: untouched(machine.pid))
    assert machine.qmp("query-status")["running"] is True


@both_ways
def test_a_vm_frozen_by_a_cgroup_is_read_and_stays_frozen(tmp_path: Path) -> None:
    with lab.qemu("7.2") as running:
        with lab.frozen_cgroup(running.pid):
            taken = take(running.pid, tmp_path)
            assert taken.how <= {*HELD, "from-proc"}
            assert len(taken.core.threads) == len([each for each in taken.record.threads if each.how != "absent"]) > 1
            lab.until("it is as it was", lambda: untouched(running.pid))
        assert running.qmp("query-status")["running"] is True


@contextmanager
def traced(pid: int) -> Iterator[int]:
    """Have another process trace every thread."""
    code = (
        "import os, time\nfrom autopsy.linux import ptrace\n"
        f"for tid in os.listdir('/proc/{pid}/task'): ptrace.seize(int(tid))\n"
        "print('ready', flush=True)\ntime.sleep(100)"
    )
    with looking.python(code) as tracer:
        yield tracer


@both_ways
def test_a_vm_that_is_traced_already_is_read_without_a_stop(machine: Machine, tmp_path: Path) -> None:
    with traced(machine.pid) as tracer:
        began = time.monotonic_ns()
        taken = take(machine.pid, tmp_path)
        assert "stopped" not in taken.how
        assert taken.record.frozen_at_ns > began  # the second look waits for the gap from then
        if freezing.walks:
            assert taken.how == {"walked"}
        else:
            assert taken.thread(machine.pid).how == "from-proc"
            assert f"process {tracer} " in taken.thread(machine.pid).why
        assert taken.record.stops == ()
    lab.until("it runs free", lambda: untouched(machine.pid))


def test_a_tracer_killed_at_any_moment_leaves_nothing_behind(machine: Machine) -> None:
    rng = random.Random(60)  # noqa: S311 - moments, not secrets
    known = mappings(machine.pid)
    ram = guest_ram(known)
    stacks = tuple(each for each in known if each.permissions == "rw-p" and each.start not in ram)

    def hold_for_ever() -> bytes:
        memory = os.open(f"/proc/{machine.pid}/mem", os.O_RDONLY)
        pagemap = os.open(f"/proc/{machine.pid}/pagemap", os.O_RDONLY)
        while True:
            cut.hold(MappedProcess(machine.pid, memory, pagemap, f"/proc/{machine.pid}"), stacks, 0.05)

    for number in range(60):
        holder = os.fork()
        if holder == 0:
            with suppress(BaseException):
                hold_for_ever()
            os._exit(0)
        try:
            time.sleep(rng.uniform(0.0, 0.08))
            if number % 2:
                listed = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
                for tracer in listed:
                    with suppress(ProcessLookupError):
                        os.kill(int(tracer), signal.SIGKILL)
        finally:
            os.kill(holder, signal.SIGKILL)  # its tracer dies with it
            os.waitpid(holder, 0)
        lab.until("the VM runs free", lambda: untouched(machine.pid))
    assert machine.qmp("query-status")["running"] is True


COUNTS_SIGNALS = """
got = os.open(place + "/got", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
signal.signal(signal.SIGUSR1, lambda *_: os.write(got, b"x"))
print("ready", flush=True)
while True:
    signal.pause()
"""


def signal_and_leave(pid: int) -> int:
    """Fork a process that sends one signal as soon as it sees somebody trace `pid`; it fails where it missed that."""
    sender = os.fork()
    if sender == 0:
        with suppress(BaseException):
            lab.until("it is seized", lambda: any(task["TracerPid"] != "0" for task in statuses(pid)), seconds=3)
            os.kill(pid, signal.SIGUSR1)
            os._exit(0)
        os._exit(1)
    return sender


def arrived(place: Path, count: int) -> None:
    lab.until("the signal arrives", lambda: (place / "got").stat().st_size == count)


@pytest.mark.parametrize("end", ["detaches", "is killed"])
def test_a_signal_that_arrives_while_the_vm_is_seized_is_not_lost(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The thread stops at the signal's delivery, with no interrupt of ours: the tracer must hand the signal back.
    monkeypatch.setattr(cut, "_run_before_others", lambda: time.sleep(0.03))
    if end == "is killed":
        monkeypatch.setattr(cut._Tracer, "_copy_stacks", lambda self: self.standing and time.sleep(10))
    with victim(tmp_path, COUNTS_SIGNALS) as pid:
        notes: list[str] = []
        sent = 0
        for number in range(20):
            sender = signal_and_leave(pid)
            place = tmp_path / str(number)
            place.mkdir()
            notes += take(pid, place, dataclasses.replace(FAST, max_stop=0.05)).record.notes
            sent += os.waitstatus_to_exitcode(os.waitpid(sender, 0)[1]) == 0  # a busy host lets it miss a stop
            arrived(tmp_path, sent)
            if sent == 6:
                break
        assert sent == 6
        assert end == "detaches" or any("timer" in note for note in notes)
        assert untouched(pid)


def test_a_tracer_that_hangs_in_the_stop_is_ended_by_its_own_timer(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut._Tracer, "_copy_stacks", lambda self: self.standing and time.sleep(10))
    taken = take(machine.pid, tmp_path, dataclasses.replace(FAST, max_stop=0.02))
    assert any("own timer" in note for note in taken.record.notes)
    assert len(taken.core.threads) >= 5
    (stop,) = taken.record.stops
    assert stop.end_ns - stop.start_ns < 5_000_000_000
    assert untouched(machine.pid)


def test_a_tracer_that_is_ended_before_it_has_begun_costs_the_stop_and_no_thread(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "PREPARE_SECONDS", 0.0)
    taken = take(machine.pid, tmp_path, dataclasses.replace(FAST, bpf=False))
    assert {each.tid for each in taken.record.threads} >= {machine.pid}
    assert taken.how <= {"from-proc", "absent"}
    assert "the tracer was killed: its time was up" in taken.outcome.why
    assert untouched(machine.pid)


def test_a_tracer_that_fails_says_why_and_the_threads_are_read_all_the_same(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: cut._Tracer) -> None:
        if self.standing:
            raise RuntimeError("broken")

    monkeypatch.setattr(cut._Tracer, "_copy_stacks", fail)
    taken = take(machine.pid, tmp_path)
    assert any("RuntimeError: broken" in note for note in taken.record.notes)
    assert taken.how <= {"from-proc", "stopped"}
    assert untouched(machine.pid)


STORM = """
def short():
    time.sleep(0.002)
def breed():
    while True:
        threads = [threading.Thread(target=short) for _ in range(20)]
        for each in threads: each.start()
        for each in threads: each.join()
threading.Thread(target=breed, daemon=True).start()
threading.Thread(target=breed, daemon=True).start()
print("ready", flush=True)
time.sleep(100)
"""


@both_ways
def test_a_storm_of_new_threads_ends_in_a_whole_cut(tmp_path: Path) -> None:
    patient = dataclasses.replace(FAST, bpf=freezing.walks, max_stop=2.0)  # beside other tests 50 ms pass without a CPU
    with victim(tmp_path, STORM) as pid:
        for number in range(5):
            place = tmp_path / str(number)
            place.mkdir()
            taken = take(pid, place, patient)
            assert taken.thread(pid).how in HELD
            assert len([each for each in taken.record.threads if each.how in HELD]) >= 3
        lab.until("it runs free", lambda: untouched(pid))


def test_a_process_that_dies_meanwhile_is_an_outcome_and_no_crash(tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / str(number)
        place.mkdir()
        with (
            victim(place, "print('ready', flush=True)\ntime.sleep(100)") as pid,
            looking.scene(pid, place, "freeze") as at,
        ):
            killer = os.fork()
            if killer == 0:
                time.sleep(number * 0.006)
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            outcome = freeze.expose(at)
            os.waitpid(killer, 0)
            assert isinstance(outcome, Collected | Failed)
            again = freeze.expose(at)
            assert isinstance(again, Failed)
            assert "gone" in again.why or "ended" in again.why
