"""A host without gdb gets its backtraces all the same, the same ones, marked as our own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, Frame, ThreadStack
from autopsy.examine import run
from autopsy.examine.core import cfi
from autopsy.examine.core.cfi import NoRule, UnwindTables
from autopsy.examine.core.dwarf_expression import work_out
from autopsy.examine.core.elf import Elf
from autopsy.examine.gdb import mi, printed, without_gdb
from support import lab, snapshot
from tests.examine.coroutines.test_coroutines import throttled


def no_gdb(*_: Any, **__: Any) -> Any:
    raise mi.NoGdb("gdb", "is not installed", remedy="apt install gdb")


def are_the_same(ours: Sequence[Frame], by_gdb: Sequence[Frame]) -> bool:
    """Return whether ours are gdb's frames, in order and to the end.

    gdb tells some besides that have no place on the stack, by debug information: what was inlined, and what ended in a
    jump to the next function.
    """
    told = iter(frame.pc for frame in by_gdb)
    return all(frame.pc in told for frame in ours) and ours[-1].pc == by_gdb[-1].pc


@pytest.mark.live
@pytest.mark.parametrize("label", ["7.2", "10.0.2-debug"])
def test_threads_and_coroutines_are_unwound_as_gdb_unwinds_them(
    label: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with throttled(label, short, requests=3) as machine, snapshot.exposed(machine) as found:
        run.examine_core(found.frozen)
        by_gdb = {each.tid: each for each in found.record(layout.THREADS, list[ThreadStack])}
        parked = {each.address: each for each in found.record(layout.COROUTINES, list[Coroutine])}
        for file in (layout.THREADS, layout.COROUTINES, layout.BACKTRACE):
            (found.place / "evidence" / layout.GDB_THREADS / file).unlink()
        monkeypatch.setattr(printed, "Gdb", no_gdb)
        told = run.examine_core(found.frozen)
        ours = {each.tid: each for each in found.record(layout.THREADS, list[ThreadStack])}
        coroutines = {each.address: each for each in found.record(layout.COROUTINES, list[Coroutine])}
        text = (found.place / "evidence" / layout.GDB_THREADS / layout.BACKTRACE).read_text().splitlines()
    assert without_gdb.NOTE in told
    assert set(ours) == set(by_gdb)
    for tid, stack in ours.items():
        assert are_the_same(stack.frames, by_gdb[tid].frames), stack.cut_short
        assert f"LWP {tid}" in text[stack.line - 1]
        assert without_gdb.MARK in text[stack.line - 1]
    assert sum(len(stack.frames) for stack in ours.values()) > 3 * len(ours)
    requests = [each for each in coroutines.values() if each.state == "parked"]
    assert len(requests) >= 3
    for each in requests:
        assert are_the_same(each.frames, parked[each.address].frames)
        assert len(each.frames) >= 3


@pytest.mark.parametrize("name", ["/usr/bin/qemu-system-x86_64", "/lib/x86_64-linux-gnu/libc.so.6"])
def test_every_function_of_a_real_file_has_a_rule_at_its_start(name: str) -> None:
    if not Path(name).exists():
        lab.missing(f"{name} is not here")
    elf = Elf(Path(name))
    tables = UnwindTables(elf)
    starts = elf.unwind_starts[::37]
    assert len(starts) > 50
    for start in starts:
        row = tables.row(start)
        assert row.expression or row.register in {6, 7, 10}, hex(start)


def test_a_file_without_tables_is_told_to_have_none() -> None:
    header = b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 62) + bytes(44)
    with pytest.raises(NoRule):
        UnwindTables(Elf(header)).row(0x1000)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_no_table_does_more_than_fail(first: bytes, program: bytes) -> None:
    common = cfi._Common(1, -8, 0x1B, augmented=True, signal=False, program=first)
    try:
        row = cfi._run(common, program, 0, 40, cfi._run(common, first, 0, 40, None))
    except NoRule:
        return
    assert isinstance(row.offset, int)


@given(st.binary(max_size=64))
def test_no_expression_does_more_than_fail(program: bytes) -> None:
    try:
        found = work_out(program, dict.fromkeys(range(17), 1 << 63), lambda _address: 7, 5)
    except NoRule:
        return
    assert 0 <= found < 1 << 64


def test_an_expression_is_worked_out_as_the_plt_writes_it() -> None:
    # DW_OP_breg7 8; breg16 0; lit15; and; lit11; ge; lit3; shl; plus: 16 more once an entry has pushed its number
    program = bytes.fromhex("770880003f1a3b2a332422")
    assert work_out(program, {7: 0x1000, 16: 0x20}, lambda _: 0, None) == 0x1008
    assert work_out(program, {7: 0x1000, 16: 0x2B}, lambda _: 0, None) == 0x1010


def test_a_shift_by_a_negative_number_is_no_error_of_ours() -> None:
    assert work_out(bytes.fromhex("310980" + "24"), {}, lambda _: 0, None) == 0  # 1 << -128


def test_the_frame_that_the_kernel_makes_for_a_signal_leads_back_to_where_it_came() -> None:
    library = Path("/lib/x86_64-linux-gnu/libc.so.6")
    if not library.exists():
        lab.missing(f"{library} is not here")
    elf = Elf(library)
    tables = UnwindTables(elf)
    (row,) = (row for start in elf.unwind_starts if (row := tables.row(start)).signal)
    saved = dict.fromkeys(range(17), 0) | {7: 0x10000}
    # 40 bytes into a struct rt_sigframe lies a sigcontext: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    memory = {0x10000 + 40 + 8 * place: 0x5000 + place for place in range(23)}
    assert work_out(row.expression, saved, memory.__getitem__, None) == 0x5000 + 15  # rsp
    returns = row.rules[cfi.RETURN_ADDRESS]
    assert returns.how is cfi.WhereSaved.AT_EXPRESSION
    assert memory[work_out(returns.expression, saved, memory.__getitem__, 0)] == 0x5000 + 16  # rip
