from __future__ import annotations

import dataclasses
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

import lab
import looking
from autopsy.bundle import names
from autopsy.bundle.records import FreezeRecord, FrozenThread
from autopsy.capture import cut, exposure, freeze
from autopsy.capture.child import in_child
from autopsy.capture.memory import Mapping, Process, parse_smaps
from autopsy.capture.step import Collected, Failed, Options, Outcome
from autopsy.drill.machine import Machine
from autopsy.examine.core import Core

pytestmark = pytest.mark.live

GDB = ("gdb", "-nx", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off")
SECRET = b"a guest's secret"  # 16 bytes
FAST = dataclasses.replace(Options(), max_stop=0.05)


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """One exposure, read back."""

    outcome: Outcome
    record: FreezeRecord
    core: Core
    path: Path

    def thread(self, tid: int) -> FrozenThread:
        return next(each for each in self.record.threads if each.tid == tid)

    @property
    def how(self) -> set[str]:
        return {each.how for each in self.record.threads if "kernel" not in each.why}


def take(pid: int, place: Path, options: Options = FAST, *, second: bool = False) -> Taken:
    step = names.SECOND_EXPOSURE if second else names.FREEZE
    with looking.scene(pid, place, step) as plain:
        scene = dataclasses.replace(plain, options=options)
        outcome = freeze.expose_again(scene) if second else freeze.expose(scene)
        record = looking.decoded(scene, names.FREEZE_RECORD, FreezeRecord)
        path = scene.folder / names.CORE if second else place / names.CORE
    assert isinstance(outcome, Collected), outcome
    return Taken(outcome, record, Core(path), path)


def statuses(pid: int) -> Iterator[dict[str, str]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            yield dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)


def untouched(pid: int, states: str = "RSDI") -> bool:
    """Return whether no thread is stopped or traced and no signal waits, as if we had never been there."""
    return all(
        status["State"][0] in states
        and status["TracerPid"] == "0"
        and not int(status["SigPnd"], 16)
        and not int(status["ShdPnd"], 16)
        for status in statuses(pid)
    )


def mappings(pid: int) -> tuple[Mapping, ...]:
    return parse_smaps(Path(f"/proc/{pid}/smaps").read_bytes())


def gdb(*arguments: str | Path) -> str:
    if shutil.which("gdb") is None:
        lab.missing("gdb is not here")
    return subprocess.run([*GDB, *arguments], capture_output=True, check=False, timeout=60).stdout.decode()


def frames(text: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for part in re.split(r"^Thread ", text, flags=re.MULTILINE)[1:]:
        head, _, rest = part.partition("\n")
        if lwp := re.search(r"LWP (\d+)", head):
            found[int(lwp[1])] = re.findall(r"^#\d+ +(?:0x([0-9a-f]+ in \S+)|\S+)", rest, flags=re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Run a quiet VM with a few iothreads and an AIO ring."""
    with lab.folder() as folder:
        disk = lab.disk(folder / "disk")
        with lab.qemu(
            "7.2",
            *(word for number in range(4) for word in ("-object", f"iothread,id=io{number}")),
            *("-blockdev", f"driver=file,filename={disk},node-name=f0,aio=native,cache.direct=on"),
            *("-device", "virtio-blk-pci,drive=f0,id=vd0,iothread=io0", "-smp", "2"),
            accelerate=lab.KVM if lab.kvm_works() else lab.TCG,
        ) as running:
            yield running


def test_gdb_shows_every_thread_of_the_core_with_the_frames_of_a_live_gdb(machine: Machine, tmp_path: Path) -> None:
    binary = Path(f"/proc/{machine.pid}/exe").resolve()
    bt = ("-ex", "set print frame-arguments none", "-ex", "thread apply all bt")
    for attempt in range(5):  # even an idle VM has a thread that wakes now and then
        place = tmp_path / str(attempt)
        place.mkdir()
        taken = take(machine.pid, place)
        frozen, live = frames(gdb(*bt, binary, taken.path)), frames(gdb(*bt, "-p", str(machine.pid)))
        tids = [each.tid for each in taken.record.threads if each.how == "stopped"]
        if frozen == {tid: live[tid] for tid in tids}:
            break
    else:
        pytest.fail("no core had the frames of a live gdb")
    kernels = {each.tid for each in taken.record.threads if "kernel" in each.why}
    assert {int(name) for name in os.listdir(f"/proc/{machine.pid}/task")} == {*tids, *kernels}
    assert all(len(stack) >= 2 for stack in frozen.values())
    listed = gdb("-ex", "info threads", binary, taken.path)
    assert [int(lwp) for lwp in re.findall(r"\(LWP (\d+)\)", listed[listed.index("Id ") :])] == tids
    assert untouched(machine.pid)


def test_eu_readelf_and_drgn_open_the_core(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    threads = len(taken.core.threads)
    if shutil.which("eu-readelf") is not None:
        printed = subprocess.run(["eu-readelf", "-n", taken.path], capture_output=True, check=True).stdout.decode()
        assert printed.count("PRSTATUS") == threads
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(taken.path))
    assert {thread.tid for thread in program.threads()} == {thread.tid for thread in taken.core.threads}


def test_the_record_says_how_long_the_vm_stood_and_who_was_there(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    assert isinstance(taken.outcome, Collected)
    (stop,) = taken.record.stops
    assert taken.outcome.stop_ns == stop.end_ns - stop.start_ns > 0
    assert stop.start_ns < taken.record.frozen_at_ns < stop.end_ns
    assert taken.record.threads[0].tid == machine.pid
    assert {each.comm for each in taken.record.threads} >= {"IO io0", "IO io3"}
    assert all(each.stack_bytes for each in taken.record.threads if each.how == "stopped")
    assert taken.record.core_bytes == taken.path.stat().st_size
    assert list(tmp_path.glob("evidence/*/*")) == [tmp_path / "evidence" / "freeze" / "freeze.json"]


def test_the_frozen_bytes_are_those_of_the_process(machine: Machine, tmp_path: Path) -> None:
    taken = take(machine.pid, tmp_path)
    heap = next(each for each in mappings(machine.pid) if each.path == "[heap]")
    same = different = 0
    with open(f"/proc/{machine.pid}/mem", "rb", buffering=0) as memory:
        for extent in taken.core.extents_within(heap.start, heap.end):
            for address in range(extent.start, extent.end, 4096):
                memory.seek(address)
                if memory.read(4096) == taken.core.read(address, 4096):
                    same += 1
                else:
                    different += 1
    assert same > 100
    assert different <= same // 50


def test_the_aio_ring_is_in_the_core(machine: Machine, tmp_path: Path) -> None:
    machine.qemu_io(lab.of_device("vd0"), "write 0 4k")
    ring = next(each for each in mappings(machine.pid) if each.path.startswith("/[aio]"))
    taken = take(machine.pid, tmp_path)
    assert taken.core.int32(ring.start + 16) & 0xFFFFFFFF == 0xA10A10A1  # struct aio_ring's magic


def test_relro_data_and_headers_of_the_libraries_are_in_the_core_and_their_code_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    taken = take(machine.pid, tmp_path)
    libc = [each for each in mappings(machine.pid) if "libc.so" in each.path]
    assert taken.core.read(libc[0].start, 4) == b"\x7fELF"
    assert any(taken.core.holds(each.start) for each in libc if each.permissions == "r--p" and each.offset)
    assert not any(taken.core.holds(each.start) for each in libc if each.permissions == "r-xp")
    assert {each.path for each in taken.core.files} >= {libc[0].path}


def test_the_second_exposure_over_the_first_is_a_whole_core(machine: Machine, tmp_path: Path) -> None:
    first = take(machine.pid, tmp_path)
    second = take(machine.pid, tmp_path, second=True)
    assert second.path == tmp_path / "evidence" / "second-exposure" / "core"
    assert second.path.stat().st_blocks < first.path.stat().st_blocks // 4
    assert {each.tid for each in second.core.threads} == {each.tid for each in first.core.threads}
    both = Core.over(first.core, second.core)
    assert sum(each.end - each.start for each in both.extents) >= first.record.copied_bytes * 0.99


def test_a_second_exposure_without_a_first_stands_for_itself(machine: Machine, tmp_path: Path) -> None:
    alone = take(machine.pid, tmp_path, second=True)
    assert sum(each.end - each.start for each in alone.core.extents) >= alone.record.copied_bytes


def test_under_tcg_every_thread_is_frozen_and_generated_code_is_left_out(tmp_path: Path) -> None:
    with lab.qemu("7.2") as running:
        taken = take(running.pid, tmp_path)
        assert taken.how == {"stopped"}
        assert any("CPU 0/TCG" in each.comm for each in taken.record.threads)
        assert any(each.why == "generated code" for each in taken.record.left_out)
        assert untouched(running.pid)


def write_firmware(path: Path) -> None:
    """Fill 64 KiB at 0x10000 with the secret, which stands in this code only under a mask."""
    code = bytes.fromhex("fab800108ec031fffcbe3000b910002eac3455aae2f985ff75eff4ebfd")
    rom = bytearray(code.ljust(0x30, b"\0") + bytes(byte ^ 0x55 for byte in SECRET)).ljust(1 << 16, b"\0")
    rom[0xFFF0:0xFFF3] = bytes.fromhex("e90d00")  # the reset vector: jump to 0
    path.write_bytes(rom)


def guest_wrote(pid: int, memory: int) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as stream:
        for each in mappings(pid):
            if each.size == memory << 20:
                stream.seek(each.start + 0x10000)
                return stream.read(16) == SECRET
    return False


@pytest.mark.parametrize("backend", ["anon", "memfd", "memfd-private", "file-private", "file-shared", "undumped"])
def test_guest_ram_is_never_in_the_core(backend: str, tmp_path: Path) -> None:
    with lab.folder() as folder:
        write_firmware(folder / "rom")
        objects = {
            "anon": "memory-backend-ram,id=m,size=64M",
            "memfd": "memory-backend-memfd,id=m,size=64M",
            "memfd-private": "memory-backend-memfd,id=m,size=64M,share=off",
            "file-private": f"memory-backend-file,id=m,size=64M,mem-path={folder}/ram,share=off",
            "file-shared": f"memory-backend-file,id=m,size=64M,mem-path={folder}/ram,share=on",
            "undumped": "memory-backend-ram,id=m,size=64M,dump=off",
        }
        with lab.qemu(
            "7.2",
            *("-object", objects[backend], "-machine", "memory-backend=m"),
            *("-bios", str(folder / "rom")),
            accelerate=lab.KVM if lab.kvm_works() else lab.TCG,
            boots=True,
        ) as running:
            lab.until("the guest has written", lambda: guest_wrote(running.pid, 64))
            taken = take(running.pid, tmp_path)
            again = take(running.pid, tmp_path, second=True)
            assert untouched(running.pid)
    assert SECRET not in taken.path.read_bytes()
    assert SECRET not in again.path.read_bytes()
    assert any(each.size == 64 << 20 and "guest RAM" in each.why for each in taken.record.left_out)


def test_threads_in_uninterruptible_sleep_are_read_and_not_waited_for(tmp_path: Path) -> None:
    with lab.file_system() as storage:
        disk = lab.disk(storage.mount / "disk", mebibytes=8)
        with lab.qemu(
            "7.2",
            *("-blockdev", f"driver=file,filename={disk},node-name=f0,aio=threads"),
            *("-device", "virtio-blk-pci,drive=f0,id=vd0"),
        ) as running:
            with lab.frozen(storage):
                for number in range(4):
                    running.qemu_io(lab.of_device("vd0"), f"aio_write {number * 64}k 4k")
                lab.until("workers hang", lambda: list(lab.states(running.pid)).count("D") >= 1)
                asleep = {int(status["Pid"]) for status in statuses(running.pid) if status["State"][0] == "D"}
                taken = take(running.pid, tmp_path)
                assert untouched(running.pid)
            assert taken.how == {"stopped", "from-proc"}
            binary = Path(f"/proc/{running.pid}/exe").resolve()
            stacks = frames(gdb("-ex", "thread apply all bt", binary, taken.path))
            for tid in asleep:
                assert taken.thread(tid).how == "from-proc"
                assert "uninterruptible" in taken.thread(tid).why
                assert len(stacks[tid]) >= 4
            lab.until("the writes are done", lambda: not lab.any_thread_in(running.pid, "D"))
            assert running.qmp("query-status")["status"]


@contextmanager
def victim(tmp_path: Path, body: str) -> Iterator[int]:
    """Run Python that says "ready" and goes on; `body` may use `place`."""
    with looking.python(f"import os, signal, sys, threading, time\nplace = {str(tmp_path)!r}\n{body}") as pid:
        yield pid


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
        lab.until("the thread has woken", lambda: not lab.any_thread_in(pid, "D"))
        assert untouched(pid)


def test_a_thread_that_waits_for_the_map_is_a_reason_not_to_stop(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = exposure.tasks
    monkeypatch.setattr(exposure, "_waits_for_the_map", lambda pid, tid: pid == machine.pid and tid == machine.pid)
    monkeypatch.setattr(freeze, "tasks", lambda pid: tuple(dataclasses.replace(each, state="D") for each in plain(pid)))
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
    monkeypatch.setattr(exposure, "_read", lambda _: lines.encode())
    assert exposure._waits_for_the_map(1, 1) is (answer == "waits")


def test_a_stopped_vm_stays_stopped_and_goes_on_when_it_is_continued(machine: Machine, tmp_path: Path) -> None:
    with lab.stopped(machine):
        taken = take(machine.pid, tmp_path)
        assert taken.how == {"stopped"}
        lab.until("it is as it was", lambda: untouched(machine.pid, "T"))
    lab.until("it runs", lambda: untouched(machine.pid))
    assert machine.qmp("query-status")["running"] is True


def test_a_vm_frozen_by_a_cgroup_is_read_and_stays_frozen(tmp_path: Path) -> None:
    with lab.qemu("7.2") as running:
        with lab.frozen_cgroup(running.pid):
            taken = take(running.pid, tmp_path)
            assert taken.how <= {"stopped", "from-proc"}
            assert len(taken.core.threads) == len([each for each in taken.record.threads if each.how != "absent"]) > 1
            lab.until("it is as it was", lambda: untouched(running.pid))
        assert running.qmp("query-status")["running"] is True


@contextmanager
def traced(pid: int) -> Iterator[int]:
    """Have another process trace every thread."""
    code = (
        "import os, time\nfrom autopsy.capture import ptrace\n"
        f"for tid in os.listdir('/proc/{pid}/task'): ptrace.seize(int(tid))\n"
        "print('ready', flush=True)\ntime.sleep(100)"
    )
    with looking.python(code) as tracer:
        yield tracer


def test_a_vm_that_is_traced_already_is_read_without_a_stop(machine: Machine, tmp_path: Path) -> None:
    with traced(machine.pid) as tracer:
        taken = take(machine.pid, tmp_path)
        assert "stopped" not in taken.how
        assert taken.thread(machine.pid).how == "from-proc"
        assert f"process {tracer} " in taken.thread(machine.pid).why
        assert taken.record.stops == ()
    lab.until("it runs free", lambda: untouched(machine.pid))


def test_a_tracer_killed_at_any_moment_leaves_nothing_behind(machine: Machine) -> None:
    rng = random.Random(60)  # noqa: S311 - moments, not secrets
    stacks = tuple(each for each in mappings(machine.pid) if each.permissions == "rw-p" and "dc" not in each.flags)

    def hold_for_ever() -> bytes:
        memory = os.open(f"/proc/{machine.pid}/mem", os.O_RDONLY)
        pagemap = os.open(f"/proc/{machine.pid}/pagemap", os.O_RDONLY)
        while True:
            cut.hold(Process(machine.pid, memory, pagemap), stacks, 0.05)

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
    """Fork a process that sends one signal as soon as somebody traces `pid`."""
    sender = os.fork()
    if sender == 0:
        with suppress(BaseException):
            lab.until("it is seized", lambda: any(status["TracerPid"] != "0" for status in statuses(pid)))
            os.kill(pid, signal.SIGUSR1)
        os._exit(0)
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
        for number in range(6):
            sender = signal_and_leave(pid)
            place = tmp_path / str(number)
            place.mkdir()
            notes += take(pid, place, dataclasses.replace(FAST, max_stop=0.05)).record.notes
            os.waitpid(sender, 0)
            arrived(tmp_path, number + 1)
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


def test_a_storm_of_new_threads_ends_in_a_whole_cut(tmp_path: Path) -> None:
    with victim(tmp_path, STORM) as pid:
        for number in range(5):
            place = tmp_path / str(number)
            place.mkdir()
            taken = take(pid, place)
            assert taken.thread(pid).how == "stopped"
            assert len([each for each in taken.record.threads if each.how == "stopped"]) >= 3
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


def test_without_permission_it_says_how_to_get_it(machine: Machine, tmp_path: Path) -> None:
    lab.need_root()

    def as_nobody() -> bytes:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with looking.scene(machine.pid, tmp_path, "freeze") as at:
            return repr(freeze.expose(at)).encode()

    (tmp_path / "evidence" / "freeze").mkdir(parents=True)
    for each in (tmp_path, *tmp_path.parents):
        if each.owner() == "root" and "pytest" in str(each):
            each.chmod(0o755)
    said = in_child(as_nobody, 10).decode()
    assert said.startswith("Failed(")
    assert "not permitted: run as root or with CAP_SYS_PTRACE" in said


def test_a_32_bit_process_and_another_architecture_are_told_and_not_tried(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looking.scene(machine.pid, tmp_path, "freeze") as at:
        monkeypatch.setattr(freeze.platform, "machine", lambda: "aarch64")
        assert freeze.expose(at) == Failed("freeze needs x86-64; aarch64 is not supported: use --live-gdb")
    assert freeze._is_64_bit(Path("/proc/self/auxv").read_bytes()) is (sys.maxsize > 1 << 32)
    assert not freeze._is_64_bit(
        bytes.fromhex("10000000fffb8b1f0600000000100000040000002000000005000000090000000000000000000000")
    )


def test_a_disk_that_is_full_costs_the_core_and_not_the_record(machine: Machine, tmp_path: Path) -> None:
    lab.need_root()
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", mount], check=True)
    try:
        with looking.scene(machine.pid, mount, "freeze") as at:
            outcome = freeze.expose(at)
            assert outcome == Failed("the core could not be written: No space left on device")
            record = msgspec.json.decode((at.folder / names.FREEZE_RECORD).read_bytes(), type=FreezeRecord)
        assert record.stops
        assert not (mount / names.CORE).exists()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_with_little_time_left_the_core_comes_before_the_second_copy(machine: Machine, tmp_path: Path) -> None:
    with looking.scene(machine.pid, tmp_path, names.FREEZE, seconds=0.3) as at:
        assert isinstance(freeze.expose(at), Collected)
        record = looking.decoded(at, names.FREEZE_RECORD, FreezeRecord)
    assert any("second time" in note for note in record.notes)
    assert Core(tmp_path / names.CORE).threads


def test_a_host_that_cannot_fork_a_tracer_costs_the_stop_and_not_the_core(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(cut.os, "fork", no_memory)
    taken = take(machine.pid, tmp_path)
    monkeypatch.undo()
    assert taken.record.stops == ()
    assert taken.thread(machine.pid).how == "from-proc"
    assert any("no tracer" in note for note in taken.record.notes)
