"""Tells whether a parked coroutine holds a block request, by what QEMU's own lists say of its stack.

Every request below a block driver's entry has a BdrvTrackedRequest on its coroutine's stack, which the node's list
links to; one that waits behind a limit or a drain is in a CoQueue. What is in neither (the monitor's dispatcher, a job
between two copies, an export's client that asks for nothing, the reader of a server's replies) waits for somebody to
ask, and may do so for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

WORD = 8
# From a BdrvTrackedRequest's start to its wait queue, of which an empty one points to itself; before that the
# coroutine, then the list's links. QEMU has added members before them more than once.
MOST_BEFORE_LINKS = 96
COROUTINE_BYTES = 0x70  # of struct Coroutine, up to the link of the queue that it waits in and the one behind
TOP_WORDS = 32  # of a stack, in which the trampoline keeps its Coroutine
MOST_BEHIND = 0x200  # a CoQueue lies that near behind what a waiter's stack points to: a BlockBackend, a limit's member
MOST_POINTERS = 160
LOWEST = 1 << 16

Read = Callable[[int, int], bytes]


class Shape(IntEnum):
    """What a coroutine that is parked waits with."""

    UNKNOWN = 0  # not looked at yet: it has been seen once
    TRACKED = 1
    QUEUED = 2
    OTHER = 3  # it holds no request


@dataclass(frozen=True, slots=True)
class Held:
    """What a coroutine holds; `kin` is an address that those waiting for the same node, or in the same queue, share."""

    shape: Shape
    kin: int = 0


@dataclass(frozen=True, slots=True)
class ParkedStack:
    """A coroutine's stack: the words below its top, the last one right below it."""

    top: int
    words: Sequence[int]

    @property
    def low(self) -> int:
        """Return the address of the first word."""
        return self.top - WORD * len(self.words)


def held_by(stacks: Sequence[ParkedStack], is_code: Callable[[int], bool], read: Read) -> tuple[Held, ...]:
    """Return what each coroutine holds. `read` returns fewer bytes where there is no memory, and must never fault."""
    found = [_tracked(stack, read) for stack in stacks]
    coroutines = {}
    for number, stack in enumerate(stacks):
        if found[number] is None and (coroutine := _coroutine_of(stack, is_code, read)):
            coroutines[number] = coroutine
    queues = _queues(stacks, coroutines, read)
    queued = {number: Held(Shape.QUEUED, queue) for number, queue in queues.items()}
    return tuple(tracked or queued.get(number) or Held(Shape.OTHER) for number, tracked in enumerate(found))


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


def _queues(stacks: Sequence[ParkedStack], coroutines: dict[int, int], read: Read) -> dict[int, int]:
    """Return, for each coroutine that waits in a CoQueue, what tells that queue from others."""
    by_address = {address: number for number, address in coroutines.items()}
    behind: dict[int, int] = {}
    for number, address in coroutines.items():
        data = read(address, COROUTINE_BYTES)
        words = struct.unpack(f"<{len(data) // WORD}Q", data[: len(data) // WORD * WORD])
        for word in words[1:]:
            if word != address and word in by_address:
                behind[number] = by_address[word]
                break
    found: dict[int, int] = {}
    for head in coroutines.keys() - behind.values():
        queue = _queue_of(stacks[head], coroutines[head], read)
        waits = head
        while waits not in found and (queue or waits != head or waits in behind):
            found[waits] = queue or coroutines[head]
            if waits not in behind:
                break
            waits = behind[waits]
    return found


def _queue_of(stack: ParkedStack, coroutine: int, read: Read) -> int:
    """Return the address of the CoQueue whose first waiter this is: {first, address of the last one's link}."""
    wanted = coroutine.to_bytes(WORD, "little")
    pointers = [
        word
        for word in dict.fromkeys(reversed(stack.words))
        if word % WORD == 0 and word >= LOWEST and not stack.low <= word < stack.top
    ]
    for pointer in pointers[:MOST_POINTERS]:
        data = read(pointer, MOST_BEHIND)
        place = data.find(wanted)
        while place >= 0:
            if place % WORD == 0 and _is_queue(data[place + WORD : place + 2 * WORD], read):
                return pointer + place
            place = data.find(wanted, place + 1)
    return 0


def _is_queue(link: bytes, read: Read) -> bool:
    """Return whether the word behind a first waiter is the address of the last one's link, which leads nowhere."""
    last = int.from_bytes(link, "little")
    return len(link) == WORD and last % WORD == 0 and last >= LOWEST and read(last, WORD) == bytes(WORD)
