"""Finds the limit that a parked coroutine waits at, and when its timer lets the next one through.

A ThrottleGroupMember ends in its ThrottleTimers: two timers, a clock, two callbacks, and a pointer back to the member.
In front of them lie its queues, a queue a direction, and its group's state. QEMU has kept them so since 2.10.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from autopsy.dataclass import dataclass

WORD = 8
MOST_BEHIND = 0x200  # a member lies that near behind what a waiter's stack points to: a BlockBackend has one inside
MOST_POINTERS = 160
LOWEST = 1 << 16
BACK = 5 * WORD  # from the timers to the pointer back: two timers, the clock, two callbacks
QUEUES = 6 * WORD  # from the first queue to the timers: two queues of two words, two counters in one, the group's state
QUEUE = 2 * WORD
STATE = WORD
DIRECTIONS = 2
REALTIME = 0  # QEMU_CLOCK_REALTIME, which is CLOCK_MONOTONIC; another one only a test's QEMU has
TIMER = struct.Struct("<qQQQ")  # expire_time, timer_list, cb, opaque
# A ThrottleState is six buckets of five words, a size and a time; behind it lie the group's first member, and for each
# direction the member whose turn it is: the one that has its timer armed.
GROUP_FROM, GROUP_WORDS = 31 * WORD, 6

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class ThrottleMemberPlace:
    """Where one disk's part of a throttle group lies, and where in it its timers do."""

    address: int
    timers: int


def member_of(pointers: Iterable[int], is_code: Callable[[int], bool], read: Read) -> ThrottleMemberPlace | None:
    """Return the member that one of these pointers leads to, the words of a stack for example."""
    for pointer in pointers:
        data = read(pointer, MOST_BEHIND)
        words = struct.unpack(f"<{len(data) // WORD}Q", data[: len(data) // WORD * WORD])
        for place in range(BACK // WORD, len(words)):
            back, timers = words[place], place * WORD - BACK
            if not QUEUES <= pointer + timers - back <= MOST_BEHIND or back < LOWEST:
                continue
            if is_code(words[place - 1]) and is_code(words[place - 2]):
                member = ThrottleMemberPlace(back, pointer + timers - back)
                if _expires(member, 0, read) is not None:
                    return member
    return None


def due(member: ThrottleMemberPlace, read: Read) -> int | None:
    """Return at which CLOCK_MONOTONIC every queue of this member is let go on; None where one has no time set."""
    head = read(member.address + member.timers - QUEUES, QUEUES + BACK + WORD)
    if len(head) < QUEUES + BACK + WORD:
        return None
    words = struct.unpack(f"<{len(head) // WORD}Q", head)
    if words[QUEUES // WORD + DIRECTIONS] & 0xFFFFFFFF != REALTIME:
        return None
    others = _others(words[(QUEUES - STATE) // WORD], member, read)
    latest = None
    for direction in range(DIRECTIONS):
        if not words[direction * QUEUE // WORD]:
            continue
        times = [_expires(place, direction, read) for place in (member, *others)]
        armed = [at for at in times if at is not None and at > 0]
        if not armed:
            return None
        latest = max(latest or 0, *armed)
    return latest


def _others(state: int, like: ThrottleMemberPlace, read: Read) -> tuple[ThrottleMemberPlace, ...]:
    """Return the group's members that may have its timer: with several disks, only one at a time has it armed."""
    data = read(state + GROUP_FROM, GROUP_WORDS * WORD)
    words = struct.unpack(f"<{len(data) // WORD}Q", data[: len(data) // WORD * WORD])
    places = (ThrottleMemberPlace(word, like.timers) for word in dict.fromkeys(words) if word >= LOWEST)
    return tuple(place for place in places if place != like and _expires(place, 0, read) is not None)


def _expires(member: ThrottleMemberPlace, direction: int, read: Read) -> int | None:
    """Return when a member's timer expires, -1 where it is not set; None where that is no timer of this member."""
    pointer = read(member.address + member.timers + direction * WORD, WORD)
    data = read(int.from_bytes(pointer, "little"), TIMER.size) if len(pointer) == WORD else b""
    if len(data) < TIMER.size:
        return None
    expires, _, _, opaque = TIMER.unpack(data)
    return expires if opaque == member.address else None
