"""Coroutine mutexes, and the graph of coroutines and threads, in memory made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from autopsy.bundle.records import CoMutex, Coroutine, LockGraph
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core, Registers
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import mutexes
from autopsy.examine.coroutines.find import STACK_SIZE, Saved
from autopsy.examine.threads import wait_cycles
from support import snapshot

HEAP = 0x60_0000
LOCK = HEAP + 0x800
CONTEXT = HEAP + 0xF00
FIRST_STACK = 0x7000_0000
USED = 0x400
NOBODY = Registers(*(0,) * 27)


def stack(number: int) -> int:
    return FIRST_STACK + number * (STACK_SIZE + 0x1000)


def address(number: int) -> int:
    return HEAP + number * 0x100


def coroutine(number: int, *, state: str = "parked", caller: int = 0, rbx: int = 0) -> Saved:
    """Return a coroutine that uses the top of its stack; `rbx` is saved in its jmpbuf."""
    return Saved(
        registers=NOBODY._replace(rbx=rbx, rsp=stack(number) + STACK_SIZE - USED),
        coroutine=Coroutine(
            address=address(number),
            stack=stack(number),
            stack_size=STACK_SIZE,
            state=state,  # type: ignore[arg-type]  # one of its words
            pc=1,
            sp=stack(number) + STACK_SIZE - USED,
            entry=0,
            entry_argument=0,
            caller=caller,
            context=CONTEXT,
            locks_held=0,
        ),
    )


def record_at(number: int) -> int:
    return stack(number) + STACK_SIZE - 0x100


def waiting(number: int, *, after: int = 0, points_at: int = LOCK) -> tuple[int, bytes]:
    """Return the used stack of a coroutine in qemu_co_mutex_lock(): a pointer to the mutex, and its wait record."""
    words = struct.pack("<Q", points_at).ljust(USED - 0x100, b"\0")
    return stack(number) + STACK_SIZE - USED, words + struct.pack("<QQ", address(number), after).ljust(0x100, b"\0")


def lock(*, locked: int, holder: int, from_push: int = 0, to_pop: int = 0) -> tuple[int, bytes]:
    return LOCK, struct.pack("<I4xQQQIIQ", locked, CONTEXT, from_push, to_pop, 0, 0, holder)


def found(saved: Iterable[Saved], *memory: tuple[int, bytes]) -> tuple[CoMutex, ...]:
    core = Core.of(snapshot.core_of(b"", *sorted(memory)))
    return mutexes.find_mutexes(core, symbols(core), tuple(saved), [])


def symbols(core: Core) -> Symbols:
    place = Path("/nonexistent")
    return Symbols(core, Frozen(core=place, read=lambda _path: b"", write=lambda _file, _data: None, scratch=place))


def test_a_mutex_is_found_by_its_waiters_who_came_first_first() -> None:
    everyone = [coroutine(1), *(coroutine(number) for number in (2, 3, 4))]
    (told,) = found(
        everyone,
        lock(locked=4, holder=address(1), from_push=record_at(4), to_pop=record_at(2)),
        waiting(2),
        waiting(3),
        waiting(4, after=record_at(3)),
    )
    assert told.address == LOCK
    assert (told.locked, told.holder, told.place) == (4, address(1), "heap")
    assert told.waiters == (address(2), address(3), address(4))


def test_a_mutex_that_is_only_in_a_saved_register_is_found() -> None:
    everyone = [coroutine(1), coroutine(2, rbx=LOCK)]
    memory = (lock(locked=2, holder=address(1), from_push=record_at(2)), waiting(2, points_at=0))
    assert [each.waiters for each in found(everyone, *memory)] == [(address(2),)]


def test_what_only_looks_like_a_mutex_is_none() -> None:
    everyone = [coroutine(1), coroutine(2)]
    stranger, ring = 0x4141_4141_4141, record_at(2)
    for memory in (
        (lock(locked=2, holder=stranger, from_push=record_at(2)), waiting(2)),
        (lock(locked=0, holder=address(1), from_push=record_at(2)), waiting(2)),
        (lock(locked=1, holder=address(1)), waiting(2)),
        (lock(locked=9, holder=address(1), from_push=record_at(1)), waiting(2)),
        (lock(locked=2, holder=address(1), from_push=ring), waiting(2, after=ring)),
    ):
        assert found(everyone, *memory) == ()


@given(
    st.lists(
        st.sampled_from((0, 1, 2, LOCK, LOCK + 8, address(1), address(2), record_at(1), record_at(2))), max_size=64
    )
)
def test_any_words_are_a_mutex_or_none(words: list[int]) -> None:
    data = struct.pack(f"<{len(words)}Q", *words)
    top = stack(2) + STACK_SIZE
    memory = [(HEAP + 0x800, data.ljust(64, b"\0")), (top - USED, (data * 4)[:USED].rjust(USED, b"\0"))]
    for each in found([coroutine(1), coroutine(2, rbx=LOCK)], *memory):
        assert 0 < len(each.waiters) <= each.locked


def graph_of(threads: bytes, saved: list[Saved], *memory: tuple[int, bytes]) -> LockGraph:
    core = Core.of(snapshot.core_of(threads, *sorted(memory)))
    return wait_cycles.with_coroutines(LockGraph(mutexes=(), others=(), cycles=()), core, symbols(core), saved, [])


def test_a_coroutine_runs_on_the_thread_that_is_on_its_stack_and_so_does_who_entered_it() -> None:
    outer, inner = coroutine(1, state="running"), coroutine(2, state="running", caller=address(1))
    told = graph_of(snapshot.thread_note(7, rsp=inner.top - 64), [outer, inner])
    assert [(each.coroutine, each.tid) for each in told.entered] == [(address(1), 7), (address(2), 7)]
    assert told.knots == ()


def test_coroutines_that_enter_each_other_end_the_search() -> None:
    one, other = (coroutine(number, state="running", caller=address(3 - number)) for number in (1, 2))
    told = graph_of(snapshot.thread_note(7, rsp=one.top - 64), [one, other])
    assert {each.tid for each in told.entered} == {7}


def test_coroutines_that_wait_for_each_other_are_a_knot_and_one_that_waits_for_a_running_one_is_none() -> None:
    holder, waiter = coroutine(1, state="running"), coroutine(2)
    memory = (lock(locked=2, holder=address(1), from_push=record_at(2)), waiting(2))
    assert graph_of(snapshot.thread_note(7, rsp=holder.top - 64), [holder, waiter], *memory).knots == ()
    itself = (lock(locked=2, holder=address(2), from_push=record_at(2)), waiting(2))
    assert graph_of(snapshot.thread_note(7), [holder, waiter], *itself).knots == ((address(2),),)
