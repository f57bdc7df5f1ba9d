"""Cores and evidence that somebody made to hurt whoever examines them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopsy.examine import previous
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import MACHINE_X86_64, PAGE, Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import compare, entered, find, mutexes
from autopsy.examine.coroutines.find import STACK_SIZE, mangle
from autopsy.examine.gdb.unwind import led_into
from autopsy.examine.heap import virtqueues
from autopsy.examine.threads import aio_rings, aio_workers, lock_owners, main_loop, poll_sets
from autopsy.examine.view import View
from support import snapshot

GUARD = 0x1234_5678_9ABC_DEF0
CODE = 0x40_0000
HEAP = 0x60_0000
STACK = 0x7000_0000
RANDOM = 0x7FFF_0000
WORDS = (0, 1, 2, STACK_SIZE, STACK, HEAP, HEAP + 0x80, CODE + PAGE, STACK + STACK_SIZE - 0x100, (1 << 64) - 1)


def program() -> bytes:
    """Return the first page of a program whose code is the page behind it."""
    start = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, MACHINE_X86_64, 1, CODE, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    loads = struct.pack("<IIQQQQQQ", 1, 4, 0, CODE, 0, PAGE, PAGE, PAGE)
    loads += struct.pack("<IIQQQQQQ", 1, 5, PAGE, CODE + PAGE, 0, PAGE, PAGE, PAGE)
    return (start + loads).ljust(PAGE, b"\0")


def whole(heap: bytes, stack: bytes = b"", *, lock: int = HEAP, program_name: bytes = b"/q") -> bytes:
    """Return a core with two threads, a heap and a coroutine's stack."""
    mapped = struct.pack("<QQ", 1, PAGE) + struct.pack("<QQQ", CODE, CODE + PAGE, 0) + program_name + b"\0"
    notes = snapshot.thread_note(1, orig_rax=202, rdi=lock, rsi=0x80, rdx=2, fs_base=HEAP)
    notes += snapshot.thread_note(2, orig_rax=-1, rip=CODE + PAGE, rsp=STACK + STACK_SIZE - 0x200)
    for kind, data in ((0x46494C45, mapped), (6, struct.pack("<QQQQ", 25, RANDOM, 9, CODE))):
        notes += struct.pack("<III", 5, len(data), kind) + b"CORE\0\0\0\0" + data + b"\0" * (-len(data) % 4)
    return snapshot.core_of(
        notes,
        (CODE, program()),
        (HEAP, heap),
        (STACK + STACK_SIZE - PAGE, stack.rjust(PAGE, b"\0")),
        (RANDOM, struct.pack("<QQ", 0, GUARD)),
    )


def one_coroutine() -> bytes:
    saved = struct.pack(
        "<8Q", HEAP, mangle(0, GUARD), 0, 0, 0, 0, mangle(STACK + STACK_SIZE - 0x400, GUARD), mangle(CODE + PAGE, GUARD)
    )
    header = struct.pack("<11Q", CODE + PAGE, 0, 0, 0, 1, HEAP, 0, 0, 0, 0, 0)
    return header + struct.pack("<QQ", STACK, STACK_SIZE) + saved + bytes(64)


def frozen(evidence: bytes = b"") -> Frozen:
    return Frozen(
        core=Path("/nonexistent"),
        read=lambda _path: evidence,
        write=lambda _file, _data: None,
        scratch=Path("/nonexistent"),
    )


def examine(first: bytes, second: bytes, evidence: bytes) -> None:
    """Examine a core as far as no debugger is needed; whatever is wrong with it is a CoreError at its opening."""
    given_to = frozen(evidence)
    try:
        core = Core.of(first)
        later = Core.over(core, Core.of(second))
    except CoreError:
        return
    symbols = Symbols(core, given_to)
    saved = find.find_coroutines(core, symbols)
    assert len(saved) <= len(first) // 16
    for each in saved:
        find.returns(core, symbols, each)
    compare.compare(core, saved, later, find.find_coroutines(later, symbols))
    entered.contexts(core, symbols, saved)
    led_into(symbols, core.extents, core.threads)
    view = View(frozen=given_to, core=core, second=later, symbols=symbols, threads=(), saved=saved, ends_at=0)
    for work_out in (
        lock_owners.examine_locks,
        main_loop.examine_main_loop,
        aio_rings.examine_aio_rings,
        aio_workers.examine_aio_workers,
        poll_sets.examine_poll_sets,
        virtqueues.examine_virtqueues,
    ):
        work_out(view)


@given(
    st.lists(st.sampled_from(WORDS), max_size=80), st.lists(st.sampled_from(WORDS), max_size=80), st.binary(max_size=80)
)
def test_any_heap_and_any_stack_are_examined(heap: list[int], stack: list[int], evidence: bytes) -> None:
    packed = [struct.pack(f"<{len(words)}Q", *words) for words in (heap, stack)]
    examine(whole(one_coroutine() + packed[0], packed[1]), whole(packed[0], packed[1]), evidence)


@given(st.data())
def test_a_core_damaged_anywhere_is_examined_or_refused(data: st.DataObject) -> None:
    cores = [bytearray(whole(one_coroutine())) for _ in range(2)]
    for damaged in cores:
        for _ in range(data.draw(st.integers(0, 6))):
            at = data.draw(st.integers(6, len(damaged) - 8))
            damaged[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    examine(bytes(cores[0]), bytes(cores[1]), b"")


def test_a_mapped_file_may_have_any_bytes_in_its_name() -> None:
    """A lock's address is told by the name of what it lies in, as JSON."""
    odd = whole(one_coroutine(), lock=CODE + 0x80, program_name=b"/\x80")
    examine(odd, odd, b"")


@given(
    st.binary(max_size=300) | st.sampled_from((b"[" * 100_000, b"{}", b"[[]]", b'[{"tid": 1e400}]', b"null", b"\xff"))
)
def test_what_a_bundle_says_already_is_believed_only_if_it_can_be_read(evidence: bytes) -> None:
    told = previous.read_previous(lambda _path: evidence)
    told.best_threads((), "")
    told.best_coroutines((), blind=True)
    poll_sets.eventfds(lambda _path: evidence)


def test_a_heap_full_of_stack_sizes_ends_the_search_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second word is a stack's size: each is a candidate, and there is no end to them in a hostile core."""
    monkeypatch.setattr(find, "MOST_CANDIDATES", 100)
    words = struct.pack("<QQ", STACK, STACK_SIZE) * 5000 + one_coroutine()
    core = Core.of(whole(words))
    asked = []
    word = Core.word
    monkeypatch.setattr(Core, "word", lambda self, address: asked.append(address) or word(self, address))
    assert find.find_coroutines(core, Symbols(core, frozen())) == ()
    assert len(asked) < 1000


def test_wait_records_that_all_lead_into_one_another_are_walked_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mutexes, "MOST_STEPS", 10)
    record = STACK + STACK_SIZE - 0x100
    mutex = struct.pack("<I4xQQQIIQ", 60000, 0, record, 0, 0, 0, HEAP)
    locks_there = mutex * 50
    pointers = struct.pack("<50Q", *(HEAP + 0x400 + number * 48 for number in range(50)))
    stack = pointers.ljust(0x300, b"\0") + struct.pack("<QQ", HEAP, record).ljust(0x100, b"\0")
    core = Core.of(whole(one_coroutine().ljust(0x400, b"\0") + locks_there, stack))
    saved = find.find_coroutines(core, Symbols(core, frozen()))
    assert len(saved) == 1
    assert mutexes.find_mutexes(core, Symbols(core, frozen()), saved, []) == ()


def test_a_stack_that_no_request_uses_up_is_like_no_other() -> None:
    deep = STACK + PAGE
    body = one_coroutine()
    place = 11 * 8 + 16 + 6 * 8
    core = Core.of(whole(body[:place] + struct.pack("<Q", mangle(deep, GUARD)) + body[place + 8 :]))
    symbols = Symbols(core, frozen())
    (saved,) = find.find_coroutines(core, symbols)
    assert find.returns(core, symbols, saved) == ((saved.top - deep, HEAP),)
