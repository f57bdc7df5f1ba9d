"""Tells whether a parked coroutine holds a block request, by what QEMU's own lists say of its stack.

Every request below a block driver's entry has a BdrvTrackedRequest on its coroutine's stack, which the node's list
links to; one that waits behind a limit or a drain is in a CoQueue. What is in neither (the monitor's dispatcher, a job
between two copies, an export's client that asks for nothing, the reader of a server's replies) waits for somebody to
ask, and may do so for ever.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

from autopsy.dataclass import dataclass
from autopsy.watch.signs.throttle_shape import LOWEST, MOST_BEHIND, MOST_POINTERS, WORD, ThrottleMemberPlace, member_of

# From a BdrvTrackedRequest's start to its wait queue, of which an empty one points to itself; before that the
# coroutine, then the list's links. QEMU has added members before them more than once.
MOST_BEFORE_LINKS = 96
COROUTINE_BYTES = 0x70  # of struct Coroutine, up to the link of the queue that it waits in and the one behind
TOP_WORDS = 32  # of a stack, in which the trampoline keeps its Coroutine
IN_A_QUEUE = 1

Read = Callable[[int, int], bytes]


class Shape(IntEnum):
    """What a coroutine that is parked waits with."""

    UNKNOWN = 0  # not looked at yet: it has been seen once
    TRACKED = 1
    QUEUED = 2
    OTHER = 3  # it holds no request


@dataclass(frozen=True, slots=True)
class Held:
    """What a coroutine holds; `kin` is what those that wait for the same have in common.

    For a tracked request that is the node's address; of queues one is as good as another. `coroutine` is the address
    of who waits in one, 0 else; `limit` is the limit's queue, where it is one's.
    """

    shape: Shape
    kin: int = 0
    coroutine: int = 0
    limit: ThrottleMemberPlace | None = None


@dataclass(frozen=True, slots=True)
class ParkedStack:
    """A coroutine's stack: the words below its top, the last one right below it."""

    top: int
    words: Sequence[int]

    @property
    def low(self) -> int:
        """Return the address of the first word."""
        return self.top - WORD * len(self.words)

    @property
    def pointers(self) -> tuple[int, ...]:
        """Return what may be addresses outside of the stack, what was put there first before what came last."""
        kept = (
            word
            for word in dict.fromkeys(reversed(self.words))
            if word % WORD == 0 and word >= LOWEST and not self.low <= word < self.top
        )
        return tuple(itertools.islice(kept, MOST_POINTERS))


def held_by(
    stacks: Sequence[ParkedStack], waiting: Iterable[int], is_code: Callable[[int], bool], read: Read
) -> tuple[Held, ...]:
    """Return what each coroutine holds.

    `waiting` are the addresses of coroutines that are known to wait in a queue. `read` returns fewer bytes where there
    is no memory, and must never fault.
    """
    holds = [_tracked(stack, read) for stack in stacks]
    coroutines = {}
    for number, stack in enumerate(stacks):
        if holds[number] is None and (coroutine := _coroutine_of(stack, is_code, read)):
            coroutines[number] = coroutine
    linked = _linked({*coroutines.values(), *waiting}, read)
    for number, coroutine in coroutines.items():
        if coroutine in linked or _is_first(stacks[number], coroutine, read):
            limit = member_of(stacks[number].pointers, is_code, read)
            holds[number] = Held(Shape.QUEUED, IN_A_QUEUE, coroutine, limit)
    return tuple(held or Held(Shape.OTHER) for held in holds)


def _tracked(stack: ParkedStack, read: Read) -> Held | None:
    """Find a tracked request by two proofs: an empty queue that points to itself, and a list that points to it."""
    low = stack.low
    for place, word in enumerate(stack.words):
        if place < 4 or word != low + WORD * (place - 1):
            continue
        links = low + WORD * (place - 4)
        pointer = read(stack.words[place - 3], WORD)
        start = int.from_bytes(pointer, "little")
        if len(pointer) == WORD and 0 <= links - start <= MOST_BEFORE_LINKS and start >= low:
            return Held(Shape.TRACKED, stack.words[(start - low) // WORD])
    return None


def _coroutine_of(stack: ParkedStack, is_code: Callable[[int], bool], read: Read) -> int:
    """Return the address of a stack's struct Coroutine: it begins with the function that was entered."""
    for word in dict.fromkeys(reversed(stack.words[-TOP_WORDS:])):
        if word % WORD or word < LOWEST or stack.low <= word < stack.top:
            continue
        entry = read(word, WORD)
        if len(entry) == WORD and is_code(int.from_bytes(entry, "little")):
            return word
    return 0


def _linked(coroutines: set[int], read: Read) -> set[int]:
    """Return the coroutines that one of them is linked to, or is linked from: they wait behind each other."""
    chained: set[int] = set()
    for address in coroutines:
        data = read(address, COROUTINE_BYTES)
        words = struct.unpack(f"<{len(data) // WORD}Q", data[: len(data) // WORD * WORD])
        behind = coroutines.intersection(words[1:]) - {address}
        if behind:
            chained |= behind | {address}
    return chained


def _is_first(stack: ParkedStack, coroutine: int, read: Read) -> bool:
    """Return whether a CoQueue ({first, address of the last link}) that the stack leads to begins with this one."""
    wanted = coroutine.to_bytes(WORD, "little")
    for pointer in stack.pointers:
        data = read(pointer, MOST_BEHIND)
        place = data.find(wanted)
        while place >= 0:
            if place % WORD == 0 and _is_queue(data[place + WORD : place + 2 * WORD], read):
                return True
            place = data.find(wanted, place + 1)
    return False


def _is_queue(link: bytes, read: Read) -> bool:
    """Return whether the word behind a first waiter is the address of the last one's link, which leads nowhere."""
    last = int.from_bytes(link, "little")
    return len(link) == WORD and last % WORD == 0 and last >= LOWEST and read(last, WORD) == bytes(WORD)
