"""A limit's queue is found by the shape of its timers, in memory that is made up as QEMU lays it out."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from autopsy.watch.signs.throttle_shape import ThrottleMemberPlace, due, member_of

CODE = range(0x500000, 0x600000)
BLOCK_BACKEND = 0x48  # where in one its member lies
MEMBER, SECOND_MEMBER, STATE, TIMERS = 0x10048, 0x20000, 0x30000, 0x40000
BEFORE_QUEUES = 0x38  # the context and a CoMutex
NOT_SET = -1


@dataclass(slots=True)
class Memory:
    """Pages that are there, and all else that is not."""

    bytes_at: dict[int, int] = field(default_factory=dict)

    def put(self, address: int, *words: int) -> None:
        for place, byte in enumerate(struct.pack(f"<{len(words)}q", *words)):
            self.bytes_at[address + place] = byte

    def read(self, address: int, size: int) -> bytes:
        if address & ~0xFFF not in {place & ~0xFFF for place in self.bytes_at}:
            return b""
        return bytes(self.bytes_at.get(address + place, 0) for place in range(size))

    def member(self, at: int, expires: tuple[int, int], waiting: tuple[int, int] = (0x7000, 0), clock: int = 0) -> None:
        queues = [word for first in waiting for word in (first, first + 0x68 if first else at)]
        timers = [TIMERS + at, TIMERS + at + 0x100]
        for timer, time in zip(timers, expires, strict=True):
            self.put(timer, time, 0x9000, CODE[8], at)
        self.put(at + BEFORE_QUEUES, *queues, 0, STATE, *timers, clock, CODE[8], CODE[16], at, 1, 0)

    def group(self, *members: int) -> None:
        self.put(STATE, *[0] * 32, *members)


def found(memory: Memory, pointer: int = MEMBER - BLOCK_BACKEND) -> ThrottleMemberPlace | None:
    return member_of([0x123450, pointer], CODE.__contains__, memory.read)


def due_of(memory: Memory) -> int | None:
    member = found(memory)
    assert member is not None
    return due(member, memory.read)


def test_the_member_inside_of_a_block_back_end_is_found_and_its_time_read() -> None:
    memory = Memory()
    memory.member(MEMBER, (5000, NOT_SET))
    memory.group(MEMBER, MEMBER, MEMBER)
    assert found(memory) == found(memory, MEMBER) == ThrottleMemberPlace(MEMBER, BEFORE_QUEUES + 0x30)
    assert due_of(memory) == 5000


def test_where_two_disks_share_a_limit_the_one_whose_turn_it_is_has_the_timer() -> None:
    memory = Memory()
    memory.member(MEMBER, (NOT_SET, NOT_SET))
    memory.member(SECOND_MEMBER, (7000, NOT_SET))
    memory.group(MEMBER, SECOND_MEMBER, MEMBER)
    assert due_of(memory) == 7000


def test_a_queue_for_which_no_timer_is_set_has_no_time() -> None:
    memory = Memory()
    memory.member(MEMBER, (NOT_SET, 7000), waiting=(0x7000, 0x8000))
    memory.group(MEMBER)
    assert due_of(memory) is None


def test_the_later_time_counts_where_reads_and_writes_wait() -> None:
    memory = Memory()
    memory.member(MEMBER, (5000, 7000), waiting=(0x7000, 0x8000))
    memory.group(MEMBER)
    assert due_of(memory) == 7000


def test_a_clock_that_stands_with_the_guest_tells_no_time() -> None:
    memory = Memory()
    memory.member(MEMBER, (5000, NOT_SET), clock=1)
    memory.group(MEMBER)
    assert due_of(memory) is None


def test_timers_of_another_make_no_member() -> None:
    memory = Memory()
    memory.member(MEMBER, (5000, NOT_SET))
    memory.put(TIMERS + MEMBER, 5000, 0x9000, CODE[8], SECOND_MEMBER)
    assert found(memory) is None


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=64))
def test_whatever_lies_in_memory_is_no_error(words: list[int]) -> None:
    memory = Memory()
    memory.put(MEMBER - BLOCK_BACKEND, *words, MEMBER)
    place = found(memory)
    if place is not None:
        due(place, memory.read)
