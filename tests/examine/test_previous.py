"""Which of two examinations of one core is believed, record by record."""

from __future__ import annotations

import msgspec

from autopsy.bundle.heap.records import Heap, HeapSnapshot
from autopsy.bundle.records import Coroutine, Frame, LockGraph, Module, Mutex, ThreadStack
from autopsy.examine.previous import Earlier

HERE = Frame(pc=0x10, function="ppoll", module="/lib/libc.so.6")
NAMELESS = Frame(pc=0x20, module="/q", offset=0x20, near="f", unwind_start=0x18)
NAMED = Frame(pc=0x20, module="/q", offset=0x20, function="g")
LINED = Frame(pc=0x20, module="/q", offset=0x20, function="g", file="q.c", line=7)
BACKTRACE = "Thread 1 (LWP 7):\n#0  old\n\nThread 2 (LWP 8):\n#0  old\n"


def thread(tid: int, *frames: Frame, line: int = 0, cut_short: str = "") -> ThreadStack:
    return ThreadStack(tid=tid, comm=f"t{tid}", frames=frames, line=line, cut_short=cut_short)


def coroutine(*frames: Frame, address: int = 1, state: str = "parked", since: str = "unknown") -> Coroutine:
    return Coroutine(
        address=address,
        stack=0,
        stack_size=0,
        state=state,  # type: ignore[arg-type]  # one of its words
        pc=0x10,
        sp=0x7000,
        entry=0,
        entry_argument=0,
        caller=0,
        context=0,
        locks_held=0,
        frames=frames,
        since_first=since,  # type: ignore[arg-type]  # likewise
    )


def test_a_stack_that_was_unwound_is_kept_where_only_its_place_is_known_now() -> None:
    old = Earlier(
        backtrace=BACKTRACE, threads=(thread(7, HERE, NAMELESS, line=1), thread(8, HERE, NAMELESS, NAMED, line=4))
    )
    now = [thread(7, HERE, LINED, line=4), thread(8, HERE, cut_short="no gdb")]
    told, text = old.best_threads(now, "\n\n\nThread 1 (LWP 7):\n#0  new\n")
    assert [each.frames for each in told] == [(HERE, LINED), (HERE, NAMELESS, NAMED)]
    lines = text.splitlines()
    assert [lines[each.line - 1 : each.line + 1] for each in told] == [
        ["Thread 1 (LWP 7):", "#0  new"],
        ["Thread 2 (LWP 8):", "#0  old"],
    ]


def test_a_stack_of_another_moment_is_not_believed() -> None:
    old = Earlier(backtrace=BACKTRACE, threads=(thread(7, LINED, LINED),))
    told, _ = old.best_threads([thread(7, HERE)], "")
    assert told[0].frames == (HERE,)


def test_names_count_for_more_than_frames_and_lines_for_more_than_names() -> None:
    for worse, better in (
        ((HERE,), (HERE, NAMELESS)),
        ((HERE, NAMELESS, NAMELESS), (HERE, NAMED)),
        ((HERE, NAMED), (HERE, LINED)),
    ):
        for old, now in ((worse, better), (better, worse)):
            (told,) = Earlier(coroutines=(coroutine(*old),)).best_coroutines([coroutine(*now)], blind=False)
            assert told.frames == better


def test_what_became_of_a_coroutine_is_told_by_whoever_saw_it_last() -> None:
    old = Earlier(coroutines=(coroutine(HERE, NAMED, since="unknown"),))
    (told,) = old.best_coroutines([coroutine(HERE, since="stuck")], blind=True)
    assert (told.frames, told.since_first) == ((HERE, NAMED), "stuck")


def test_a_coroutine_is_known_to_be_pooled_even_where_it_can_no_longer_be_told() -> None:
    old = Earlier(coroutines=(coroutine(state="pooled"), coroutine(HERE, NAMED, address=2)))
    assert [each.state for each in old.best_coroutines([coroutine(HERE)], blind=True)] == ["pooled", "parked"]
    (told,) = old.best_coroutines([coroutine(HERE, NAMED)], blind=False)
    assert told.state == "parked"


def test_a_module_keeps_its_better_names() -> None:
    old = Module(path="/q", base=0, end=9, build_id="aa", symbols="dynsym", source="process")
    now = msgspec.structs.replace(old, symbols="none", source="not found")
    assert Earlier(modules=(old,)).best_modules([now]) == (old,)
    assert Earlier(modules=(now,)).best_modules([old]) == (old,)
    other = msgspec.structs.replace(now, build_id="bb")
    assert Earlier(modules=(old,)).best_modules([other]) == (other,)


def test_the_bql_stays_known() -> None:
    mutex = Mutex(address=5, owner=7, owner_comm="", kind="normal", count=0, waiters=(8,))
    now = LockGraph(mutexes=(mutex,), others=(), cycles=())
    old = LockGraph(
        mutexes=(msgspec.structs.replace(mutex, is_bql=True, symbol="bql"),),
        others=(),
        cycles=(),
        bql_address=5,
        bql_owner=7,
        bql_how_found="symbol bql",
    )
    assert Earlier(graph=old).best_graph(now) == old
    assert Earlier(graph=now).best_graph(old) == old


def test_a_heap_that_was_walked_stays_until_it_is_walked_as_well_again() -> None:
    whole = Heap(first=HeapSnapshot(taken_ns=1), second=HeapSnapshot(taken_ns=2))
    again = Heap(first=HeapSnapshot(taken_ns=1), second=HeapSnapshot(taken_ns=2), symbols="given")
    for worse in (Heap(why="no DWARF"), Heap(first=whole.first), msgspec.structs.replace(whole, why="it was ended")):
        assert Earlier(heap=whole).best_heap(worse) == whole
        assert Earlier(heap=worse).best_heap(whole) == whole
    assert Earlier(heap=whole).best_heap(again) == again
