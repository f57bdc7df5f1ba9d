from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle import layout
from autopsy.bundle.records import FutexWait, LockGraph
from autopsy.examine import run
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.threads import bql, lock_owners
from autopsy.examine.threads.lock_owners import Waits, core_waits, lock_graph, mutex_kind, wait_kind, witness_waits
from autopsy.examine.threads.wait_cycles import cycles
from autopsy.examine.view import View
from support import lab, snapshot

HEAP = 0x5000
FUTEX = 202
MUTEX_WAIT = {"orig_rax": FUTEX, "rsi": 0x80, "rdx": 2}


def view_of(core: bytes, place: Path, evidence: dict[str, object] | None = None, second: bytes = b"") -> View:
    """Return the view of a core made by hand."""
    file = place / "core"
    file.write_bytes(core)
    stored = {path: msgspec.json.encode(value) for path, value in (evidence or {}).items()}
    frozen = Frozen(core=file, read=lambda path: stored.get(path, b""), write=lambda _file, _data: None, scratch=place)
    opened = Core(file)
    return View(
        frozen=frozen,
        core=opened,
        second=Core.of(second) if second else None,
        symbols=Symbols(opened, frozen),
        threads=(),
        ends_at=0,
    )


def waits_of(notes: bytes, *memory: tuple[int, bytes]) -> dict[int, FutexWait]:
    core = Core.of(snapshot.core_of(notes, *memory))
    return core_waits(core, {thread.tid for thread in core.threads})


def test_a_thread_that_waits_for_its_own_mutex_is_a_cycle_of_one(tmp_path: Path) -> None:
    core = snapshot.core_of(snapshot.thread_note(7, rdi=HEAP, **MUTEX_WAIT), (HEAP, snapshot.mutex(owner=7)))
    graph = lock_owners.of(view_of(core, tmp_path))
    assert graph.cycles == ((7,),)
    assert graph.mutexes[0].owner == 7
    assert graph.mutexes[0].waiters == (7,)
    assert graph.mutexes[0].place == "heap"


def test_two_threads_that_wait_for_each_other_are_listed_once_from_the_smaller(tmp_path: Path) -> None:
    notes = snapshot.thread_note(9, rdi=HEAP, **MUTEX_WAIT) + snapshot.thread_note(8, rdi=HEAP + 64, **MUTEX_WAIT)
    core = snapshot.core_of(notes, (HEAP, snapshot.mutex(owner=8).ljust(64, b"\0") + snapshot.mutex(owner=9)))
    assert lock_owners.of(view_of(core, tmp_path)).cycles == ((8, 9),)


def test_a_cycle_that_the_witness_did_not_see_is_told_but_not_built_on(tmp_path: Path) -> None:
    core = snapshot.core_of(snapshot.thread_note(7, rdi=HEAP, **MUTEX_WAIT), (HEAP, snapshot.mutex(owner=7)))
    seen: dict[str, object] = {layout.evidence(layout.WITNESS, layout.FUTEXES): []}
    graph = lock_owners.of(view_of(core, tmp_path, seen))
    assert graph.cycles == ()
    assert "thread 7" in graph.notes[0]
    assert graph.mutexes[0].owner == 7


def test_a_cycle_that_is_gone_in_the_second_exposure_was_none(tmp_path: Path) -> None:
    core = snapshot.core_of(snapshot.thread_note(7, rdi=HEAP, **MUTEX_WAIT), (HEAP, snapshot.mutex(owner=7)))
    later = snapshot.core_of(snapshot.thread_note(7), (HEAP, snapshot.mutex()))
    assert lock_owners.of(view_of(core, tmp_path, second=later)).cycles == ()


def test_a_thread_that_could_not_be_stopped_waits_as_the_witness_saw_it(tmp_path: Path) -> None:
    frozen = {
        "architecture": "x86_64",
        "page_size": 4096,
        "frozen_at_ns": 1,
        "stops": [],
        "threads": [{"tid": 7, "comm": "IO io0", "how": "from-proc"}],
        "left_out": [],
        "copied_bytes": 0,
        "core_bytes": 0,
    }
    evidence: dict[str, object] = {
        layout.evidence(layout.FREEZE, layout.FREEZE_RECORD): frozen,
        layout.evidence(layout.WITNESS, layout.FUTEXES): [
            FutexWait(tid=7, address=HEAP, operation=0x80, value=2, words="02", lock=2, owner=7)
        ],
    }
    graph = lock_owners.of(view_of(snapshot.core_of(snapshot.thread_note(7, orig_rax=FUTEX)), tmp_path, evidence))
    assert graph.cycles == ((7,),)
    assert graph.mutexes[0].owner_comm == "IO io0"


def test_a_mutex_of_an_owner_that_is_gone_is_told(tmp_path: Path) -> None:
    core = snapshot.core_of(snapshot.thread_note(7, rdi=HEAP, **MUTEX_WAIT), (HEAP, snapshot.mutex(owner=4242)))
    graph = lock_owners.of(view_of(core, tmp_path))
    assert graph.cycles == ()
    assert "4242" in graph.notes[0]


@pytest.mark.parametrize(
    ("operation", "value", "kind"),
    [
        (0x189, 0, "condition or semaphore"),
        (0, 0xFFFFFFFF, "event"),
        (0, 2, "rwlock or other"),  # QemuLockCnt
        (0x80, 1, "rwlock or other"),
    ],
)
def test_other_sleeps_are_told_apart(operation: int, value: int, kind: str) -> None:
    wait = FutexWait(tid=1, address=HEAP, operation=operation, value=value)
    assert not bql.is_mutex(wait)
    assert wait_kind(wait) == kind


def test_kinds_of_mutexes_are_told_by_their_low_bits() -> None:
    assert [mutex_kind(kind) for kind in (0, 1, 2, 3, 0x101, -1, 1 << 20)] == [
        "normal",
        "recursive",
        "errorcheck",
        "normal",
        "recursive",
        "other",
        "other",
    ]


def test_a_thread_in_user_mode_sleeps_in_no_futex() -> None:
    assert waits_of(snapshot.thread_note(7, orig_rax=-1, rdi=HEAP, rsi=0x80, rdx=2)) == {}


def test_words_that_were_not_frozen_give_no_owner() -> None:
    wait = waits_of(snapshot.thread_note(7, rdi=HEAP, **MUTEX_WAIT))[7]
    assert (wait.owner, wait.words) == (0, "")


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30), max_size=30))
def test_every_cycle_is_one_and_is_found_once(waits_for: dict[int, int]) -> None:
    found = cycles(waits_for)
    for ring in found:
        assert ring[0] == min(ring)
        assert all(waits_for[tid] == ring[(place + 1) % len(ring)] for place, tid in enumerate(ring))
    inside = [tid for ring in found for tid in ring]
    assert len(inside) == len(set(inside))
    for start, tid in waits_for.items():  # whoever comes back to itself is in one
        at = tid
        for _ in waits_for:
            if at == start or at not in waits_for:
                break
            at = waits_for[at]
        assert (start in inside) == (at == start)


@given(st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3), max_size=5), st.binary(max_size=100))
def test_any_registers_and_any_memory_give_a_graph(calls: list[tuple[int, int, int]], memory: bytes) -> None:
    notes = b"".join(
        snapshot.thread_note(tid, orig_rax=FUTEX, rdi=rdi, rsi=rsi, rdx=rdx)
        for tid, (rdi, rsi, rdx) in enumerate(calls, start=1)
    )
    core = Core.of(snapshot.core_of(notes, (HEAP, memory)))
    frozen = Frozen(core=Path("/nonexistent"), read=lambda _: b"", write=lambda _f, _d: None, scratch=Path("/"))
    found = core_waits(core, {thread.tid for thread in core.threads})
    graph = lock_graph(core, Symbols(core, frozen), Waits(found, frozenset()), {})
    assert msgspec.json.decode(msgspec.json.encode(graph), type=LockGraph) == graph


@given(st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), st.lists(st.integers())))
def test_any_futexes_file_is_read_or_refused(data: bytes) -> None:
    assert witness_waits(lambda _: data) in (None, {})


@pytest.mark.live
def test_the_bql_is_found_in_every_qemu(build: lab.Build) -> None:
    with lab.qemu(build) as machine, snapshot.exposed(machine) as exposed:
        run.examine_core(exposed.frozen)
        graph = exposed.record(layout.LOCKS, LockGraph)
        opened = Core(exposed.frozen.core)
        symbols = Symbols(opened, exposed.frozen)
    assert graph.bql_address
    assert graph.bql_owner in (0, machine.pid)
    assert graph.cycles == ()
    by_code = bql._by_code(symbols)
    assert by_code is not None
    assert by_code.address == graph.bql_address  # where a symbol tells it, the code tells the same
    assert any(wait.kind == "event" for wait in graph.others)  # call_rcu has nothing to do
