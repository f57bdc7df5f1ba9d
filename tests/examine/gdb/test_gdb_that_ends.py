"""What gdb does not come to print, for it ended, was ended or never began, is unwound all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, ThreadStack
from autopsy.examine import run
from autopsy.examine.gdb import printed, without_gdb
from autopsy.linux import environment
from support import snapshot
from support.snapshot import Exposed
from tests.examine.coroutines.test_coroutines import throttled
from tests.examine.gdb import stand_ins
from tests.examine.gdb.test_without_gdb import are_the_same

pytestmark = pytest.mark.live

SECONDS = 6.0  # of an examination whose gdb hangs
REQUESTS = 3


def threads(found: Exposed) -> dict[int, ThreadStack]:
    return {stack.tid: stack for stack in found.record(layout.THREADS, list[ThreadStack])}


def requests(found: Exposed) -> dict[int, Coroutine]:
    stored: list[Coroutine] = found.record(layout.COROUTINES, list[Coroutine])
    return {coroutine.address: coroutine for coroutine in stored if coroutine.state == "parked"}


def forget(found: Exposed) -> None:
    for file in (layout.THREADS, layout.COROUTINES, layout.BACKTRACE):
        (found.place / "evidence" / layout.GDB_THREADS / file).unlink()


@pytest.mark.parametrize(
    ("stand_in", "told"),
    [
        (stand_ins.ENDS, "gdb ended by itself: out of memory: unwound by autopsy itself"),
        (stand_ins.CRASHES, "gdb died: SIGSEGV"),
        (stand_ins.HANGS, "gdb was ended at its deadline: unwound by autopsy itself"),
        (stand_ins.NO_PROGRAM, "gdb cannot be started"),
        (stand_ins.REFUSES, "not in executable format"),
    ],
)
def test_every_stack_that_gdb_did_not_print_is_unwound_and_marked(
    stand_in: str, told: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with throttled("7.2", short, requests=REQUESTS) as machine, snapshot.exposed(machine) as found:
        note = run.examine_core(found.frozen)
        assert without_gdb.NOTE not in note
        by_gdb, parked = threads(found), requests(found)
        forget(found)
        folder = stand_ins.lay(short / "bin", stand_in)
        others = "" if stand_in == stand_ins.NO_PROGRAM else f":{environment.PATH}"
        monkeypatch.setattr(environment, "PATH", f"{folder}{others}")
        note = run.examine_core(replace(found.frozen, seconds=SECONDS))
        ours, of_ours = threads(found), requests(found)
        text = (found.place / "evidence" / layout.GDB_THREADS / layout.BACKTRACE).read_text()
        if stand_in == stand_ins.HANGS:
            assert not Path(f"/proc/{(short / 'bin' / 'pid').read_text().strip()}").exists()
    assert told in note
    assert without_gdb.NOTE in note
    assert set(ours) == set(by_gdb)
    for tid, stack in ours.items():
        assert are_the_same(stack.frames, by_gdb[tid].frames), stack.cut_short
        assert without_gdb.MARK in text.splitlines()[stack.line - 1]
    assert len(of_ours) >= REQUESTS
    for address, request in of_ours.items():
        assert are_the_same(request.frames, parked[address].frames)


def test_what_a_gdb_printed_before_it_died_stands_and_the_rest_is_unwound(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "MOST_DEATHS", 1)
    with throttled("10.0.2-debug", short, requests=REQUESTS) as machine, snapshot.exposed(machine) as found:
        run.examine_core(found.frozen)
        by_gdb, parked = threads(found), requests(found)
        forget(found)
        folder = stand_ins.lay(short / "bin", stand_ins.CRASHES_IN_THE_MIDDLE)
        monkeypatch.setattr(environment, "PATH", f"{folder}:{environment.PATH}")
        note = run.examine_core(found.frozen)
        both, of_both = threads(found), requests(found)
        text = (found.place / "evidence" / layout.GDB_THREADS / layout.BACKTRACE).read_text().splitlines()
    marked = {tid for tid, stack in both.items() if without_gdb.MARK in text[stack.line - 1]}
    assert "gdb died: SIGSEGV" in note
    assert f" stacks {without_gdb.NOTE}" in note
    assert len(both) - len(marked) == 2  # were whole; of the third only the innermost frame had come
    assert set(both) == set(by_gdb)
    for tid, stack in both.items():
        if tid in marked:
            assert are_the_same(stack.frames, by_gdb[tid].frames), stack.cut_short
        else:
            assert stack.frames == by_gdb[tid].frames
            assert any(frame.line for frame in stack.frames)
    for address, request in of_both.items():
        assert are_the_same(request.frames, parked[address].frames)
