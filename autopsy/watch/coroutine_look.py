"""Looks at the coroutines of a VM that is watched, again and again, in a process that may be abandoned.

What seldom changes is kept from one look to the next: where the stacks lie (as long as the process's size stays the
same), and what a coroutine holds that has not run since.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import field

import msgspec

from autopsy.dataclass import dataclass
from autopsy.linux.files import read_kernel
from autopsy.linux.mappings import PAGE, MappedProcess, Mapping, parse_maps
from autopsy.linux.tasks.present_memory import close_memory, open_memory, read_present, read_present_below
from autopsy.linux.tasks.priority import Unpreempted
from autopsy.target.coroutine_count import CALL_BYTES, MOST_MAPS, TOP, WORDS, calls_by_pointer, stack_tops
from autopsy.target.identity import stat_of
from autopsy.target.image import image_of
from autopsy.watch.request_shape import Held, ParkedStack, Shape, held_by
from autopsy.watch.signs.throttle_shape import ThrottleMemberPlace, due

USED_PAGES = 3  # of a stack: what a request's frames, and those that have returned, have left there
MAPS_SECONDS = 60.0  # after which the map is read again, whatever the process's size says
MANY = 256  # requests in flight, of which a page each must do
MOST_NEW = 512  # of which one look finds out what they hold
SIGNATURE = 8
MOST_PARKED = 16384


class ParkedCoroutine(msgspec.Struct, frozen=True, array_like=True):
    """A coroutine under way: the top of its stack, a digest of what the stack holds, and what it waits with.

    `due_in_ns` is in what time a limit's timer lets go on who waits in its queue, below 0 where that should have been.
    """

    top: int
    digest: bytes
    shape: Shape = Shape.UNKNOWN
    kin: int = 0
    due_in_ns: int | None = None


class CoroutineLook(msgspec.Struct, frozen=True, array_like=True):
    """One look at a VM's coroutines; `clear` is false where this QEMU's cannot be told apart.

    `took_ns` is what it took of a processor.
    """

    clear: bool
    parked: tuple[ParkedCoroutine, ...] = ()
    took_ns: int = 0


class AnotherProcess(Exception):
    """The process has ended, or its number means another one now."""


@dataclass(slots=True)
class WatchedStacks:
    """What is kept of one process between two looks at it."""

    start_ticks: int
    process: MappedProcess
    size: int = -1
    mapped_at: float = 0.0
    tops: tuple[int, ...] = ()
    code: tuple[Mapping, ...] = ()
    calls: dict[int, bool | None] = field(default_factory=dict)
    held: dict[tuple[int, bytes], Held] = field(default_factory=dict)
    place: int = 0

    def close(self) -> None:
        """Let go of the process."""
        close_memory(self.process)

    def look(self, size: int) -> CoroutineLook:
        """Return the coroutines under way. `size` is the process's, by which a changed map is noticed.

        Raises:
            OSError: the process is gone, or not ours to look at.
            AnotherProcess: it is another one now.
        """
        began = time.thread_time_ns()
        with Unpreempted() as ahead:
            if size != self.size or time.monotonic() - self.mapped_at > MAPS_SECONDS:
                self._map()
                self.size = size
            busy, known = [], 0
            for top in self.tops:
                ahead.breathe()
                under_way = self._is_under_way(top)
                known += under_way is not None
                if under_way:
                    busy.append(top)
            if not busy or len(busy) > MOST_PARKED:
                return CoroutineLook(clear=False, took_ns=time.thread_time_ns() - began)
            pages = USED_PAGES if len(busy) <= MANY else 1
            tokens: list[tuple[int, bytes]] = []
            fresh: dict[tuple[int, bytes], ParkedStack] = {}
            for top in busy:
                ahead.breathe()
                data = read_present_below(self.process, top, pages * PAGE)
                token = (top, hashlib.blake2b(data, digest_size=SIGNATURE).digest())
                tokens.append(token)
                if token in self.held and self.held[token].shape is Shape.UNKNOWN and len(fresh) < MOST_NEW:
                    fresh[token] = ParkedStack(top, memoryview(data[len(data) % 8 :]).cast("Q"))
            kept = {token: self.held.get(token, Held(Shape.UNKNOWN)) for token in tokens}
            if fresh:
                waiting = [held.coroutine for held in kept.values() if held.coroutine]
                holds = held_by(list(fresh.values()), waiting, self._is_code, self._read)
                kept |= dict(zip(fresh, holds, strict=True))
            self.held = kept
            due_in = self._due_in({held.limit for held in kept.values() if held.limit})
            held_by_token = ((token, kept[token]) for token in tokens)
            return CoroutineLook(
                clear=True,
                parked=tuple(
                    ParkedCoroutine(*token, held.shape, held.kin, due_in.get(held.limit))
                    for token, held in held_by_token
                ),
                took_ns=time.thread_time_ns() - began,
            )

    def _due_in(self, limits: set[ThrottleMemberPlace]) -> dict[ThrottleMemberPlace | None, int]:
        """Return in what time each limit lets a request through, of those that have a time set."""
        times = {limit: due(limit, self._read) for limit in limits}
        now = time.monotonic_ns()
        return {limit: at - now for limit, at in times.items() if at is not None}

    def _map(self) -> None:
        if stat_of(self.process.path).start_ticks != self.start_ticks:
            raise AnotherProcess
        mappings = parse_maps(read_kernel(f"{self.process.path}/maps", MOST_MAPS))
        exe = image_of(self.process.pid).link
        self.code = tuple(mapping for mapping in mappings if "x" in mapping.permissions and mapping.path == exe)
        self.tops = tuple(stack_tops(mappings))
        self.calls = {}
        self.mapped_at = time.monotonic()

    def _is_under_way(self, top: int) -> bool | None:
        data = self._read(top - TOP, TOP)
        words = WORDS.unpack(data) if len(data) == TOP else ()
        if not words:
            return None
        if words[self.place] in self.calls:  # it lies in the same place of each stack
            return self.calls[words[self.place]]
        place = next((place for place in range(len(words) - 1, -1, -1) if self._is_code(words[place])), -1)
        if place < 0:
            return None
        back = words[place]
        if back not in self.calls:
            self.calls[back] = calls_by_pointer(self._read(back - CALL_BYTES, CALL_BYTES))
        if self.calls[back] is not None:
            self.place = place
        return self.calls[back]

    def _is_code(self, word: int) -> bool:
        return any(mapping.start < word < mapping.end for mapping in self.code)

    def _read(self, address: int, size: int) -> bytes:
        return read_present(self.process, address, size)


def watched(pid: int, start_ticks: int) -> WatchedStacks:
    """Take hold of a process's memory.

    Raises:
        OSError: it is gone, or not ours to look at.
        AnotherProcess: it is another one now.
    """
    path = f"/proc/{pid}"
    stacks = WatchedStacks(start_ticks, open_memory(pid, path))
    if stat_of(path).start_ticks != start_ticks:
        stacks.close()
        raise AnotherProcess
    return stacks
