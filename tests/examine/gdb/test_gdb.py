from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, Module, ThreadStack
from autopsy.drill.machine import Machine
from autopsy.examine import run
from autopsy.examine.gdb import interactive
from autopsy.examine.gdb.backtrace import blocks
from autopsy.linux import environment
from support import lab, snapshot
from support.copies import copied, hidden


def threads(found: snapshot.Exposed) -> dict[str, ThreadStack]:
    return {each.comm: each for each in found.record(layout.THREADS, list[ThreadStack])}


def main_module(found: snapshot.Exposed) -> Module:
    modules: list[Module] = found.record(layout.MODULES, list[Module])
    return next(each for each in modules if "qemu" in each.path.rsplit("/", 1)[-1])


def main_loop(machine: Machine, found: snapshot.Exposed) -> list[str]:
    stacks: list[ThreadStack] = found.record(layout.THREADS, list[ThreadStack])
    return [frame.function for each in stacks if each.tid == machine.pid for frame in each.frames]


def test_every_thread_is_unwound_named_and_cited(build: lab.Build) -> None:
    with lab.qemu(build, "-object", "iothread,id=io0") as machine, snapshot.exposed(machine) as found:
        note = run.examine_core(found.frozen)
        stacks = threads(found)
        assert {"IO io0", "CPU 0/TCG"} <= stacks.keys()
        assert len(os.listdir(f"/proc/{machine.pid}/task")) == len(found.record(layout.THREADS, list[ThreadStack]))
        assert "main_loop_wait" in main_loop(machine, found)
        # Since QEMU 11.0 qemu_process_cpu_events; before that, qemu_wait_io_event.
        waiting = {"qemu_wait_io_event", "qemu_process_cpu_events"}
        assert len([frame for frame in stacks["CPU 0/TCG"].frames if frame.function in waiting]) == 1
        printed = (found.place / "evidence" / layout.GDB_THREADS / layout.BACKTRACE).read_text().splitlines()
        for each in stacks.values():
            assert printed[each.line - 1].startswith("Thread ")
            assert f"LWP {each.tid}" in printed[each.line - 1]
            assert printed[each.line].startswith("#0 ")
            assert each.cut_short == ""
        assert "parked coroutines" in note
        expected = {"7.2": "dynsym", "10.0.2": "dynsym", "10.0.2-debug": "dwarf", "11": "dynsym"}[build.label]
        assert main_module(found).symbols == expected
        assert len(main_module(found).build_id) == 40
        if build.label == "10.0.2-debug":
            frames = stacks["IO io0"].frames
            assert any(frame.file.endswith("iothread.c") and frame.line for frame in frames)


def test_a_vcpu_inside_kvm_is_unwound(stock: lab.Build) -> None:
    if not lab.kvm_works():
        pytest.skip("/dev/kvm does not open here")
    with lab.qemu(stock, accelerate=lab.KVM) as machine, snapshot.exposed(machine) as found:
        run.examine_core(found.frozen)
        frames = [frame.function for frame in threads(found)["CPU 0/KVM"].frames]
        assert "kvm_cpu_exec" in frames
        assert "ioctl" in frames


def test_without_gdb_the_stacks_are_there_without_their_lines(
    stock: lab.Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine) as found:
        monkeypatch.setattr(environment, "PATH", "/nonexistent")
        assert "gdb is not installed" in run.examine_core(found.frozen)
        coroutines: list[Coroutine] = found.record(layout.COROUTINES, list[Coroutine])
        (parked,) = (each for each in coroutines if each.state == "parked")
        assert parked.frames[0].function == "qemu_coroutine_switch"
        assert len(parked.frames) > 1
        stacks: list[ThreadStack] = found.record(layout.THREADS, list[ThreadStack])
        main = next(each for each in stacks if each.tid == machine.pid)
        # Since glibc 2.41, ppoll() makes its system call by three functions that have no name outside.
        assert "ppoll" in [frame.function for frame in main.frames[:4]]
        assert len(main.frames) > 4
        assert main_module(found).symbols == "dynsym"


def test_a_deleted_binary_is_read_from_the_process(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.qemu(copied(stock, short, monkeypatch)) as machine:
        (short / "qemu-system-x86_64").unlink()
        with snapshot.exposed(machine) as found:
            run.examine_core(found.frozen)
            module = main_module(found)
            assert (module.deleted, module.symbols, module.source) == (True, "dynsym", "process")
            assert "main_loop_wait" in main_loop(machine, found)


def test_a_replaced_binary_is_not_mistaken_for_the_one_that_runs(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.qemu(copied(stock, short, monkeypatch)) as machine:
        binary = short / "qemu-system-x86_64"
        binary.unlink()
        binary.write_bytes(Path("/proc/self/exe").read_bytes())
        with snapshot.exposed(machine, alive=False) as found:
            run.examine_core(found.frozen)
            assert main_module(found).symbols == "none"
            assert main_module(found).source == "not found"


def test_a_private_mount_namespace_hides_no_binary(
    stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, binary = hidden(stock, short, monkeypatch)
    with lab.qemu(inside) as machine, snapshot.exposed(machine) as found:
        assert not binary.exists()
        run.examine_core(found.frozen)
        assert main_module(found).path == str(binary)
        assert main_module(found).symbols == "dynsym"
        assert "main_loop_wait" in main_loop(machine, found)


def test_scripts_beside_the_binary_never_run(stock: lab.Build, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = copied(stock, short, monkeypatch)
    mark = short / "ran"
    for name in (".gdbinit", "qemu-system-x86_64-gdb.gdb"):
        (short / name).write_text(f"shell touch {mark}\n")
    (short / "qemu-system-x86_64-gdb.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.setenv("HOME", str(short))
    monkeypatch.chdir(short)
    with lab.qemu(ours) as machine, snapshot.exposed(machine) as found:
        (found.frozen.scratch / ".gdbinit").write_text(f"shell touch {mark}\n")
        run.examine_core(found.frozen)
        assert "main_loop_wait" in main_loop(machine, found)
        subprocess.run(interactive.argv(found.frozen), input="", text=True, capture_output=True, timeout=60, check=True)
    assert not mark.exists()


def test_an_interactive_gdb_lists_the_parked_coroutines_and_unwinds_them(stock: lab.Build) -> None:
    with lab.qemu(stock) as machine, snapshot.exposed(machine) as found:
        asked = "info coroutines\ncoroutine 1\ncoroutine\ncoroutines-backtrace\nthread 1\nbacktrace\nx/i $pc\n"
        answer = subprocess.run(
            interactive.argv(found.frozen), input=asked, text=True, capture_output=True, timeout=60, check=True
        ).stdout
        assert "1 parked coroutines" in answer
        assert answer.count("in monitor_qmp_dispatcher_co ()") >= 2
        assert "in main_loop_wait ()" in answer
        assert "=> 0x" in answer


PRINTED = """
Thread 1 (LWP 100):
#0  0x00007f0000000001 in std::function<void (int)>::operator()(int) const (...) at a dir/x y.cc:12
#1  0x00007f0000000002 in ?? ()
#2  <signal handler called>
#3  0x00007f0000000003 in poll () from /lib/libc.so.6
Backtrace stopped: previous frame inner to this frame (corrupt stack?)

Thread 2 (Thread 0x7f00 (LWP 101)):
#0  0x00007f0000000004 in f (...)
(More stack frames follow...)
"""


def test_a_backtrace_is_read_as_gdb_prints_it() -> None:
    first, second = blocks(PRINTED)
    assert (first.lwp, second.lwp) == (100, 101)
    assert [frame.function for frame in first.frames] == [
        "std::function<void (int)>::operator()(int) const",
        "",
        "<signal handler called>",
        "poll",
    ]
    assert (first.frames[0].file, first.frames[0].line) == ("a dir/x y.cc", 12)
    assert first.frames[3].pc == 0x7F0000000003
    assert first.cut_short == "previous frame inner to this frame (corrupt stack?)"
    assert second.cut_short == "more frames follow than were asked for"


@given(st.text(alphabet="Thread 1(LWP):#0x in?.\nab", max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for block in blocks(text):
        assert block.lwp >= 0
