"""The first look at a VM: every thread, every descriptor, what each sleeps on, and what may hang last."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout, proc_stat
from autopsy.bundle.records import FutexWait, PollSet
from autopsy.capture.proc import thread_waits, witness
from autopsy.capture.reading import procfs
from autopsy.capture.reading.procfs import ProcDirectory
from autopsy.capture.reading.reader import Truncated
from autopsy.capture.step import Collected, Failed, Scene, TimedOut
from autopsy.linux.child import ChildTimedOut, in_child
from support import lab, looking

SELF_DEADLOCK = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(40)
def lock_twice():
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
threading.Thread(target=lock_twice, daemon=True).start()
time.sleep(0.2)
print("ready", flush=True)
time.sleep(600)
"""

IDLE = "import time; print('ready', flush=True); time.sleep(600)"

# One thread faults on a frozen file system; another unmaps that page, and waits for it with mmap_lock in its hand.
HOLDS_MMAP_LOCK = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = os.open({path!r}, os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
page = libc.mmap(None, 4096, 3, 1, file, 0)
print("ready", flush=True)
sys.stdin.readline()
for work in (lambda: libc.memset(ctypes.c_void_p(page), 1, 1), lambda: libc.munmap(ctypes.c_void_p(page), 4096)):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)
time.sleep(600)
"""

POLLERS = """
import os, select, threading, time
waiting, writing = os.pipe()
epoll = select.epoll()
epoll.register(waiting, select.EPOLLIN)
poll, endless = select.poll(), select.poll()
poll.register(waiting, select.POLLIN)
endless.register(waiting, select.POLLIN)
for wait in (
    lambda: epoll.poll(500),
    lambda: select.select([waiting], [], [waiting], 400),
    lambda: poll.poll(300_000),
    lambda: endless.poll(),
):
    threading.Thread(target=wait, daemon=True).start()
time.sleep(0.2)
print("ready", flush=True)
time.sleep(600)
"""


def look(at: Scene) -> Collected:
    outcome = witness.witness_threads(at)
    assert isinstance(outcome, Collected), outcome
    return outcome


def comm(pid: int, tid: str) -> str:
    return Path(f"/proc/{pid}/task/{tid}/comm").read_text()


def in_state(pid: int, state: str) -> int:
    return sum(proc_stat.parse(file.read_bytes()).state == state for file in Path(f"/proc/{pid}/task").glob("*/stat"))


@pytest.mark.live
def test_every_thread_of_a_qemu_is_told_of(stock: lab.Build, short: Path) -> None:
    with lab.qemu(stock, "-object", "iothread,id=io0") as vm, looking.scene(vm.pid, short) as at:
        look(at)
        told = looking.found(at, layout.TASKS)
        tids = os.listdir(f"/proc/{vm.pid}/task")
        assert {told[f"task/{tid}/comm"].data.strip() for tid in tids} >= {b"IO io0", b"CPU 0/TCG"}
        for tid in tids:
            for file in ("stat", "status", "wchan", "syscall", "stack", "schedstat"):
                assert told[f"task/{tid}/{file}"].data, (tid, file)
        assert told["ns/net"].data.startswith(b"net:[")
        assert int(told["clock/begin"].data) < int(told["clock/end"].data) < time.monotonic_ns()
        assert f"PPid:\t{os.getpid()}".encode() in told["status"].data


@pytest.mark.live
def test_what_the_main_loop_polls_is_joined_to_its_descriptors(stock: lab.Build, short: Path) -> None:
    with lab.qemu(stock) as vm, looking.scene(vm.pid, short) as at:
        look(at)
        table = looking.found(at, layout.FDS)
        polls = {poll.tid: poll for poll in looking.decoded(at, layout.POLLS, list[PollSet])}
        main = polls[vm.pid]
        assert main.call == "ppoll"
        assert not main.truncated
        assert {table[f"fd/{each.fd}"].data for each in main.fds} >= {b"anon_inode:[eventfd]", b"anon_inode:[signalfd]"}
        eventfd = next(each.fd for each in main.fds if table[f"fd/{each.fd}"].data == b"anon_inode:[eventfd]")
        assert b"eventfd-count:" in table[f"fdinfo/{eventfd}"].data
        halted = next(tid for tid in os.listdir(f"/proc/{vm.pid}/task") if "CPU" in comm(vm.pid, tid))
        waits = {wait.tid: wait for wait in looking.decoded(at, layout.FUTEXES, list[FutexWait])}
        assert waits[int(halted)].words  # it waits for its halt condition


@pytest.mark.live
def test_the_memory_map_and_the_command_line_are_stored_as_the_kernel_gives_them(stock: lab.Build, short: Path) -> None:
    with lab.qemu(stock, name="web 1") as vm, looking.scene(vm.pid, short) as at:
        look(at)
        assert b"guest=web 1" in (at.folder / layout.CMDLINE).read_bytes()
        assert (at.folder / layout.CMDLINE).read_bytes() == Path(f"/proc/{vm.pid}/cmdline").read_bytes()
        assert b"[heap]" in (at.folder / layout.MAPS).read_bytes()
        assert (at.folder / layout.AUXV).read_bytes() == Path(f"/proc/{vm.pid}/auxv").read_bytes()
        stored = b"".join(file.read_bytes() for file in at.folder.iterdir())
        assert b"PATH=" not in stored  # the environment is never read


@pytest.mark.live
def test_a_worker_in_uninterruptible_sleep_shows_where_it_sleeps(stock: lab.Build, short: Path) -> None:
    with lab.file_system() as mounted:
        image = lab.disk(mounted.mount / "d.raw", mebibytes=16)
        drive = f"file={image},format=raw,id=disk0,if=none,aio=threads,cache=none"
        with lab.qemu(stock, "-drive", drive, "-device", "virtio-blk-pci,drive=disk0") as vm, lab.frozen(mounted):
            vm.qemu_io("disk0", "aio_write 0 4k")
            lab.until("a worker sleeps", lambda: lab.any_thread_in(vm.pid, "D"))
            with looking.scene(vm.pid, short) as at:
                look(at)
                told = looking.found(at, layout.TASKS)
                workers = [
                    name.split("/")[1] for name in told if name.endswith("/comm") and b"worker" in told[name].data
                ]
                (asleep,) = [tid for tid in workers if proc_stat.parse(told[f"task/{tid}/stat"].data).state == "D"]
                assert told[f"task/{asleep}/wchan"].data.strip(b"0\n")
                assert b"write" in told[f"task/{asleep}/stack"].data
                assert told[f"task/{asleep}/syscall"].data.split()[0] in {b"18", b"296"}  # pwrite64, pwritev
                assert (at.folder / layout.CMDLINE).stat().st_size


def test_a_mutex_that_its_owner_waits_for_names_that_owner(tmp_path: Path) -> None:
    with looking.python(SELF_DEADLOCK) as pid, looking.scene(pid, tmp_path) as at:
        look(at)
        stuck = [
            wait
            for wait in looking.decoded(at, layout.FUTEXES, list[FutexWait])
            if (wait.operation, wait.value) == (0x80, 2)
        ]
        (wait,) = stuck
        assert wait.owner == wait.tid != pid
        assert (wait.lock, wait.kind, len(wait.words)) == (2, 0, 80)


def test_a_thread_that_ran_meanwhile_leaves_no_futex_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    real = ProcDirectory.small
    monkeypatch.setattr(
        ProcDirectory,
        "small",
        lambda self, path: b"%d" % next(ticks) if path.endswith("schedstat") else real(self, path),
    )
    with looking.python(SELF_DEADLOCK) as pid, looking.scene(pid, tmp_path) as at:
        look(at)
        assert looking.decoded(at, layout.FUTEXES, list[FutexWait]) == []


def test_every_way_to_poll_tells_its_set_and_its_timeout(tmp_path: Path) -> None:
    with looking.python(POLLERS) as pid, looking.scene(pid, tmp_path) as at:
        look(at)
        polls = [poll for poll in looking.decoded(at, layout.POLLS, list[PollSet]) if poll.tid != pid]
        table = looking.found(at, layout.FDS)
        (epoll,) = (poll for poll in polls if poll.call.startswith("epoll"))
        assert table[f"fd/{epoll.epoll_fd}"].data == b"anon_inode:[eventpoll]"
        assert b"tfd:" in table[f"fdinfo/{epoll.epoll_fd}"].data
        assert epoll.timeout_ns == 500 * 10**9
        (select,) = (poll for poll in polls if poll.call in {"select", "pselect6"})
        assert [(each.events, table[f"fd/{each.fd}"].data[:5]) for each in select.fds] == [(3, b"pipe:")]
        assert select.timeout_ns is not None
        assert 0 < select.timeout_ns <= 400 * 10**9
        endless, timed = sorted(
            (poll for poll in polls if poll.call in {"poll", "ppoll"}), key=lambda poll: poll.timeout_ns or 0
        )
        assert (endless.timeout_ns, timed.timeout_ns) == (None, 300 * 10**9)
        assert [each.events for each in timed.fds] == [1]


def test_poll_sets_are_told_of_sleeps_that_a_stop_has_interrupted(tmp_path: Path) -> None:
    with looking.python(POLLERS) as pid, looking.scene(pid, tmp_path) as at:
        os.kill(pid, signal.SIGSTOP)
        lab.until("it is stopped", lambda: in_state(pid, "T") > 0)
        os.kill(pid, signal.SIGCONT)
        calls = Path(f"/proc/{pid}/task").glob
        lab.until("they sleep on", lambda: sum(each.read_bytes()[:4] == b"219 " for each in calls("*/syscall")) >= 2)
        look(at)
        polls = [poll for poll in looking.decoded(at, layout.POLLS, list[PollSet]) if poll.call == "poll"]
        table = looking.found(at, layout.FDS)
        assert {poll.timeout_ns for poll in polls} == {None, 300 * 10**9}
        assert all(table[f"fd/{each.fd}"].data.startswith(b"pipe:") for poll in polls for each in poll.fds)


def hangs_at(stuck: str, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    """Let one file of /proc/PID never answer, as when a stuck thread holds mmap_lock."""
    real = ProcDirectory.read

    def read(self: ProcDirectory, path: str, most: int = procfs.MOST_BYTES) -> bytes | Truncated:
        if path == stuck:
            time.sleep(600)
        return real(self, path, most)

    monkeypatch.setattr(ProcDirectory, "read", read)
    monkeypatch.setattr(witness, "MAPPED", tuple(replace(each, seconds=seconds) for each in witness.MAPPED))


def test_a_lock_of_the_memory_map_that_is_never_given_leaves_the_rest_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs_at("cmdline", monkeypatch)
    with looking.python(IDLE) as pid, looking.scene(pid, tmp_path) as at:
        outcome = witness.witness_threads(at)
        assert isinstance(outcome, TimedOut)
        assert outcome.why.startswith("cmdline did not answer in 0.3 s")
        stored = {file.name for file in at.folder.iterdir()}
    assert stored == {layout.TASKS, layout.FDS, layout.FUTEXES, layout.POLLS, layout.AUXV, layout.MAPS}


def test_a_lock_of_the_memory_map_that_is_really_held_costs_only_what_needs_it(tmp_path: Path) -> None:
    with lab.file_system() as mounted:
        code = HOLDS_MMAP_LOCK.format(path=str(mounted.mount / "mapped"))
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with lab.frozen(mounted), looking.scene(child.pid, tmp_path) as at:
                child.stdin.write(b"\n")
                child.stdin.flush()
                lab.until("both sleep", lambda: in_state(child.pid, "D") == 2)
                outcome = witness.witness_threads(at)
                told = looking.found(at, layout.TASKS)
                assert isinstance(outcome, TimedOut)
                assert "cmdline did not answer in 1.0 s" in outcome.why
                assert "left behind" not in outcome.why
                assert (
                    sum(
                        proc_stat.parse(section.data).state == "D"
                        for name, section in told.items()
                        if name.endswith("/stat")
                    )
                    == 2
                )
                assert (at.folder / layout.AUXV).exists()
                assert not (at.folder / layout.CMDLINE).exists()
                assert looking.found(at, layout.FDS)["mountinfo"].data
        finally:
            child.kill()
            child.communicate()


def test_a_witness_that_is_killed_leaves_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs_at("auxv", monkeypatch, seconds=60)
    with looking.python(IDLE) as pid, looking.scene(pid, tmp_path, seconds=60) as at:
        with pytest.raises(ChildTimedOut):
            in_child(lambda: str(witness.witness_threads(at)).encode(), 1.0)
        assert looking.found(at, layout.TASKS)[f"task/{pid}/comm"].data
        assert looking.found(at, layout.FDS)["fd/0"].data == b"/dev/null"


def test_memory_that_never_answers_leaves_the_waits_without_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_waits, "_memory", lambda _: time.sleep(600))
    with looking.python(SELF_DEADLOCK) as pid, looking.scene(pid, tmp_path) as at:
        outcome = witness.witness_threads(at)
        assert isinstance(outcome, TimedOut)
        (wait,) = (
            wait
            for wait in looking.decoded(at, layout.FUTEXES, list[FutexWait])
            if (wait.operation, wait.value) == (0x80, 2)
        )
        assert wait.words == ""
        assert (at.folder / layout.MAPS).stat().st_size


def test_a_process_that_ended_is_looked_at_no_more(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        with looking.scene(child.pid, tmp_path) as at:
            child.kill()
            child.wait()
            outcome = witness.witness_threads(at)
    finally:
        child.kill()
        child.wait()
    assert outcome == Failed(f"process {child.pid} has ended")


def test_another_process_with_the_same_number_is_not_looked_at(tmp_path: Path) -> None:
    with looking.scene(os.getpid(), tmp_path, start_ticks=1) as at:
        outcome = witness.witness_threads(at)
        assert isinstance(outcome, Failed)
        assert "is not the one that was captured" in outcome.why
        assert list(at.folder.iterdir()) == []


def test_a_process_that_is_not_ours_leaves_what_everybody_may_see() -> None:
    lab.need_root()
    code = """
import os, ctypes, time
ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE: what it has is root's alone
print("ready", flush=True)
time.sleep(600)
"""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as place,  # whose parents are everybody's
        looking.python(code) as pid,
        looking.scene(pid, Path(place)) as at,
    ):

        def as_nobody() -> bytes:
            for file in (place, at.folder.parent, at.folder):
                os.chown(file, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            return str(witness.witness_threads(at)).encode()

        why = in_child(as_nobody, 10).decode()
        told = looking.found(at, layout.TASKS)
        assert "kernel stacks: " in why
        assert "descriptors: EACCES" in why
        assert told[f"task/{pid}/stat"].data
        assert told[f"task/{pid}/stack"].error
        assert looking.found(at, layout.FDS)["fd"].error == "EACCES"


@given(st.binary(max_size=200))
def test_any_line_of_syscall_is_read_or_refused(line: bytes) -> None:
    thread_waits.call_of(line, machine="x86_64")


def test_a_running_thread_or_an_unknown_architecture_sleeps_in_nothing() -> None:
    line = b"202 0x1000 0x80 0x2 0x0 0x0 0x0 0x7ffe 0x7fff\n"
    assert thread_waits.call_of(line, machine="x86_64") == thread_waits.Call("futex", (0x1000, 0x80, 2, 0, 0, 0))
    assert thread_waits.call_of(line, machine="s390x") is None
    assert thread_waits.call_of(b"running\n", machine="x86_64") is None
    assert thread_waits.call_of(b"-1 0x7ffe 0x7fff\n", machine="x86_64") is None


@given(
    name=st.sampled_from(sorted(set(thread_waits.CALLS["x86_64"].values()))),
    arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_any_arguments_make_a_record(name: str, arguments: tuple[int, ...]) -> None:
    descriptor = os.memfd_create("memory")
    try:
        os.write(descriptor, struct.pack("<qq", 1, 2) * 64)
        record = thread_waits._record(1, thread_waits.Call(name, arguments), descriptor)
        assert record.tid == 1
    finally:
        os.close(descriptor)
