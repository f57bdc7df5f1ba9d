"""Whoever stands still by itself is read as it stands: nobody is stopped for it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from autopsy.capture.freeze import standing_threads
from autopsy.capture.freeze.choose_pages import address_space, choose
from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.snapshot import _stacks
from autopsy.capture.step import Collected, Deadline
from autopsy.drill.machine import Machine
from autopsy.linux.child import in_child
from autopsy.linux.mappings import MappedProcess, Mapping
from autopsy.linux.tasks import walk
from autopsy.linux.tasks.btf import OddTypes, Types
from autopsy.linux.tasks.present_memory import opened_memory
from autopsy.linux.tasks.walk import NoWalk, WalkedThread, Walker
from support import lab
from support.freezing import FAST, frames, gdb, quiet_vm, take, untouched, victim, workers_asleep

pytestmark = pytest.mark.live
WALKING = dataclasses.replace(FAST, bpf=True)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Return a quiet VM that the tests of this file share."""
    with quiet_vm() as running:
        yield running


@pytest.fixture(autouse=True)
def _walks() -> None:
    try:
        Walker(os.getpid()).close()
    except NoWalk as error:
        lab.missing(f"no thread can be walked here: {error}")


def test_no_thread_of_a_quiet_vm_is_stopped(machine: Machine, tmp_path: Path) -> None:
    for attempt in range(5):  # an idle VM has a thread that wakes now and then
        taken = take(machine.pid, tmp_path / str(attempt), WALKING)
        if taken.how == {"walked"}:
            break
    assert taken.how == {"walked"}
    assert taken.record.stops == ()
    assert isinstance(taken.outcome, Collected)
    assert taken.outcome.stop_ns == 0
    assert taken.record.threads[0].tid == machine.pid
    assert all(each.stack_bytes for each in taken.record.threads if each.how == "walked")
    assert {each.comm for each in taken.record.threads} >= {"IO io0", "IO io3"}
    assert untouched(machine.pid)


def test_registers_and_frames_are_those_that_ptrace_would_have_had(machine: Machine, tmp_path: Path) -> None:
    binary = Path(f"/proc/{machine.pid}/exe").resolve()
    for attempt in range(5):
        walked = take(machine.pid, tmp_path / f"w{attempt}", WALKING)
        stopped = take(machine.pid, tmp_path / f"s{attempt}", FAST)
        ours = {each.tid: each.registers for each in walked.core.threads}
        theirs = {each.tid: each.registers for each in stopped.core.threads}
        # rax alone differs: a stop wakes the system call, which then holds the number of its restart. ptrace reads
        # segment registers besides, which nothing here is told by.
        plain = {"rax": 0, "ds": 0, "es": 0, "fs": 0, "gs": 0, "gs_base": 0}
        same = {tid: each._replace(**plain) for tid, each in ours.items()} == {
            tid: each._replace(**plain) for tid, each in theirs.items()
        }
        bt = ("-ex", "set print frame-arguments none", "-ex", "thread apply all bt")
        if same and frames(gdb(*bt, binary, walked.path)) == frames(gdb(*bt, binary, stopped.path)):
            break
    else:
        pytest.fail("what was walked was never what was stopped")
    assert all(each.fs_base for each in ours.values())


def test_threads_in_uninterruptible_sleep_have_all_their_registers(tmp_path: Path) -> None:
    with workers_asleep(tmp_path, WALKING) as (running, taken, asleep):
        binary = Path(f"/proc/{running.pid}/exe").resolve()
        stacks = frames(gdb("-ex", "thread apply all bt", binary, taken.path))
        for thread in taken.core.threads:
            if thread.tid in asleep:
                assert taken.thread(thread.tid).how == "walked"
                assert thread.registers.rbx or thread.registers.rbp or thread.registers.r12  # /proc tells of none
                assert len(stacks[thread.tid]) >= 4


SPINS = """
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
for _ in range(6): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
time.sleep(1000)
"""


def test_only_what_runs_is_stopped(tmp_path: Path) -> None:
    with victim(tmp_path, SPINS) as pid:
        taken = take(pid, tmp_path, WALKING)
        how = [each.how for each in taken.record.threads]
        assert how.count("walked") >= 6
        assert set(how) <= {"walked", "stopped"}
        assert len(taken.core.threads) == 8
        lab.until("it runs free", lambda: untouched(pid))


RESTLESS = """
for _ in range(6): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
while True: time.sleep(0.005)
"""


class SlowWalker(Walker):
    """As slow as where there are thousands of threads."""

    def walk(self) -> dict[int, WalkedThread]:
        time.sleep(0.03)
        return super().walk()


@pytest.mark.parametrize("looks_at_one", [True, False])
def test_a_thread_that_wakes_all_the_time_is_looked_at_alone_and_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, looks_at_one: bool
) -> None:
    monkeypatch.setattr(SlowWalker, "looks_at_one", property(lambda _: looks_at_one, lambda *_: None), raising=False)
    monkeypatch.setattr(standing_threads, "Walker", SlowWalker)
    with victim(tmp_path, RESTLESS) as pid:
        taken = take(pid, tmp_path, WALKING)
        others = {each.how for each in taken.record.threads if each.tid != pid}
    assert others == {"walked"}
    assert taken.thread(pid).how == ("walked" if looks_at_one else "stopped")


CROWD = """
for _ in range(60): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
time.sleep(1000)
"""


def test_where_time_is_short_those_that_were_walked_by_then_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = standing_threads.copy_stack

    def slowly(process: MappedProcess, sp: int, stacks: Sequence[Mapping]) -> tuple[Chunk, ...]:
        time.sleep(0.02)  # as where others have the CPU in between
        return plain(process, sp, stacks)

    monkeypatch.setattr(standing_threads, "copy_stack", slowly)
    with victim(tmp_path, CROWD) as pid, opened_memory(pid, f"/proc/{pid}") as process:
        choice = choose(*address_space(process.path, ()), process.pagemap, process.memory)
        began = time.monotonic()
        stood, why = standing_threads.stood_still(process, _stacks(choice), Deadline(0.8))
        took = time.monotonic() - began
    assert why == ""
    assert 0 < len(stood) < 61
    assert took < 0.8 + 0.3


def test_a_thread_is_looked_at_alone_as_it_is_walked_and_another_process_has_none_of_ours() -> None:
    walker = Walker(os.getpid())
    try:
        ours = walker.look_at(os.getpid())
        assert ours is not None
        assert ours.on_cpu
        assert walker.look_at(os.getppid()) is None
        assert walker.look_at(1 << 22) is None
    finally:
        walker.close()


def test_a_thread_that_another_traces_and_a_group_that_is_frozen_are_walked_like_any_other(tmp_path: Path) -> None:
    with lab.qemu("7.2") as running, lab.frozen_cgroup(running.pid):
        taken = take(running.pid, tmp_path, WALKING)
        assert taken.how == {"walked"}
        assert taken.record.stops == ()


def test_where_the_kernel_lets_none_be_walked_they_are_stopped_as_before_and_it_says_so_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "vmlinux"
    odd.write_bytes(b"\x9f\xeb\x01\0" + bytes(20))
    for types in (tmp_path / "none", odd):
        monkeypatch.setattr(walk, "TYPES", str(types))
        taken = take(machine.pid, tmp_path / f"of-{types.name}", WALKING)
        assert taken.how == {"stopped"}
        assert sum("walked" in note for note in taken.record.notes) == 1


def test_without_the_right_to_bpf_it_says_so() -> None:
    lab.need_root()

    def as_nobody() -> bytes:
        os.setuid(65534)
        try:
            Walker(os.getpid())
        except NoWalk as error:
            return str(error).encode()
        return b"walked"

    assert in_child(as_nobody, 20) == b"bpf: Operation not permitted"


CLONE_NEWPID = 0x20000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
# Load the number of the call; if it is bpf(2) the answer is EPERM, else it passes.
WITHOUT_BPF = b"".join(
    struct.pack("<HBBI", *words)
    for words in ((0x20, 0, 0, 0), (0x15, 0, 1, 321), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000))
)


def in_another_pid_namespace() -> None:
    if ctypes.CDLL(None).unshare(CLONE_NEWPID):
        raise OSError("no namespace")


def with_no_memory_to_lock() -> None:
    os.seteuid(0)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


def without_the_system_call() -> None:
    libc, program = ctypes.CDLL(None), ctypes.create_string_buffer(WITHOUT_BPF)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    filtering = ctypes.create_string_buffer(struct.pack("<H6xQ", 4, ctypes.addressof(program)))
    if libc.prctl(PR_SET_SECCOMP, FILTER, filtering):
        raise OSError("no filter")


@pytest.mark.parametrize(
    ("become", "words"),
    [
        (without_the_system_call, "bpf: Operation not permitted"),
        (with_no_memory_to_lock, ""),  # since Linux 5.11 a program's memory is its control group's; before, it says so
    ],
)
def test_where_bpf_is_refused_the_vm_is_frozen_all_the_same_and_the_reason_is_told(
    machine: Machine, tmp_path: Path, become: Callable[[], None], words: str
) -> None:
    lab.need_root()

    def freeze() -> bytes:
        become()
        return in_child(lambda: "\n".join(take(machine.pid, tmp_path, WALKING).record.notes).encode(), 20)

    notes = in_child(freeze, 40).decode()
    assert words in notes
    assert bool(words) == ("threads are stopped" in notes) or "bpf: " in notes
    assert untouched(machine.pid)


def test_in_another_pid_namespace_it_says_so() -> None:
    lab.need_root()

    def inside() -> bytes:
        try:
            Walker(os.getpid())
        except NoWalk as error:
            return str(error).encode()
        return b"walked"

    def outside() -> bytes:
        in_another_pid_namespace()
        return in_child(inside, 20)  # a process's own children are the first to be in it

    assert b"another PID namespace" in in_child(outside, 40)


def test_a_spinning_guest_of_kvm_is_not_stopped(tmp_path: Path) -> None:
    if not lab.kvm_works():
        lab.missing("no KVM here")
    with lab.folder() as folder:
        boot = folder / "spins"  # a boot sector that jumps to itself
        boot.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa")
        drive = ("-drive", f"file={boot},format=raw,if=ide,readonly=off")
        with lab.qemu("7.2", *drive, accelerate=lab.KVM, boots=True) as running:
            lab.until("the guest spins", lambda: _ticks(running.pid) > 50)
            for attempt in range(5):  # it leaves KVM_RUN now and then, for a signal
                taken = take(running.pid, tmp_path / str(attempt), WALKING)
                vcpu = next(each for each in taken.record.threads if each.comm.startswith("CPU "))
                if vcpu.how == "walked":
                    break
            assert vcpu.how == "walked"
            assert next(each for each in taken.core.threads if each.tid == vcpu.tid).registers.orig_rax == walk.IOCTL
            assert untouched(running.pid)


def _ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_damaged_type_information_is_odd_and_no_crash() -> None:
    whole = Path(walk.TYPES).read_bytes()
    header = struct.unpack_from("<HBBIIIII", whole)
    types = Types(whole)
    assert types.offset(types.place(4, "task_struct"), "pid") > 0
    with pytest.raises(OddTypes):
        types.place(4, "no_such_structure")
    with pytest.raises(OddTypes):
        Types(whole[:1000])
    with pytest.raises(OddTypes):
        Types(struct.pack("<HBBIIIII", *header[:5], header[5] - 4, *header[6:]) + whole[24 : 24 + header[5] - 4])


def seen(*, on_cpu: bool = False, switches: int = 5, registers: bytes = b"r", in_ioctl: bool = False) -> WalkedThread:
    return WalkedThread(tid=1, on_cpu=on_cpu, switches=switches, registers=registers, in_ioctl=in_ioctl)


def test_who_ran_in_between_or_may_have_is_not_proven_to_have_stood_still() -> None:
    assert seen().same(seen())
    assert not seen().same(seen(switches=6))
    assert not seen().same(seen(on_cpu=True))
    assert not seen(on_cpu=True).same(seen())
    assert not seen().same(seen(registers=b"s"))
    assert seen(on_cpu=True, in_ioctl=True).same(seen(on_cpu=True, in_ioctl=True, switches=9))
    assert not seen(on_cpu=True, in_ioctl=True).same(seen(on_cpu=True, in_ioctl=True, registers=b"s"))


NEXT_PROGRAM, PROGRAM_BY_ID, INFORMATION = 11, 13, 15
INFORMATION_BYTES, NAME_AT = 232, 64  # struct bpf_prog_info


def programs() -> int:
    """Return how many programs of our name the kernel has: as long as a link is there, its program is."""
    found = number = 0
    while True:
        try:
            attributes = ctypes.create_string_buffer(struct.pack("<III", number, 0, 0), 12)
            if walk._libc.syscall(walk.SYS_BPF, NEXT_PROGRAM, attributes, 12):
                return found
            number = struct.unpack_from("<I", attributes, 4)[0]
            program = walk._bpf(PROGRAM_BY_ID, struct.pack("<III", number, 0, 0))
        except OSError:
            continue  # it has ended meanwhile
        told = ctypes.create_string_buffer(INFORMATION_BYTES)
        walk._bpf(INFORMATION, struct.pack("<IIQ", program, INFORMATION_BYTES, ctypes.addressof(told)))
        os.close(program)
        found += told.raw[NAME_AT : NAME_AT + 16].rstrip(b"\0") == walk.NAME


def test_a_walker_killed_at_any_moment_leaves_no_program_in_the_kernel(machine: Machine) -> None:
    walker = Walker(machine.pid)
    assert programs() >= 1
    walker.close()
    rng = random.Random(16)  # noqa: S311 - moments, not secrets
    for _ in range(20):
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                while True:
                    Walker(machine.pid).walk()
            os._exit(0)
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lab.until("none is left", lambda: programs() == 0)
    assert untouched(machine.pid)


HOSTILE = """
import ctypes
ctypes.CDLL(None).prctl(15, b") S 1\\n\\xff\\x1b[2J")
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_hostile_thread_name_changes_nothing(tmp_path: Path) -> None:
    with victim(tmp_path, HOSTILE) as pid:
        taken = take(pid, tmp_path, WALKING)
        assert [each.tid for each in taken.core.threads] == [pid]
        assert taken.thread(pid).how == "walked"
