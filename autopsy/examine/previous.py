"""Keep what an earlier examination of the same core knew better: with the binary gone, a later one knows less.

The rule is one for every record: the new one takes the old one's place unless the old one tells more. A stack that was
unwound tells more than where it stood; of two, more source lines tell more than more names, and more names than more
frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.heap.records import Heap
from autopsy.bundle.records import Coroutine, Frame, LockGraph, Module, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.coroutines.stored import read_back
from autopsy.examine.gdb.backtrace import blocks

KNOWLEDGE = ("none", "dynsym", "symtab", "dwarf")
NOT_FOUND = "not found"

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What the bundle already says; empty when nobody has examined this core before."""

    backtrace: str = ""
    threads: tuple[ThreadStack, ...] = ()
    coroutines: tuple[Coroutine, ...] = ()
    modules: tuple[Module, ...] = ()
    graph: LockGraph | None = None
    heap: Heap | None = None

    def best_threads(self, now: Sequence[ThreadStack], text: str) -> tuple[tuple[ThreadStack, ...], str]:
        """Return each thread's better stack, and a backtrace in which each begins at its line."""
        if not self.threads:
            return tuple(now), text
        known = {thread.tid: thread for thread in self.threads}
        old_blocks = {block.lwp: block.lines for block in blocks(self.backtrace)}
        new_blocks = {block.lwp: block.lines for block in blocks(text)}
        lines: list[str] = []
        stacks: list[ThreadStack] = []
        for new in now:
            old = known.get(new.tid)
            keeps = old is not None and _stands_alike(old, new) and _worth(old.frames) > _worth(new.frames)
            best, printed = (old, old_blocks) if keeps and old is not None else (new, new_blocks)
            if not (block := printed.get(new.tid)):
                stacks.append(msgspec.structs.replace(best, line=0))
                continue
            if lines:
                lines.append("")
            stacks.append(msgspec.structs.replace(best, comm=new.comm or best.comm, line=len(lines) + 1))
            lines += block
        return tuple(stacks), "\n".join([*lines, ""])

    def best_coroutines(self, now: Iterable[Coroutine], *, blind: bool) -> tuple[Coroutine, ...]:
        """Return each coroutine's better record; `blind` when the binary is not at hand, so that some may be missed."""
        known = {coroutine.address: coroutine for coroutine in self.coroutines}
        coroutines = tuple(_better(known.get(coroutine.address), coroutine) for coroutine in now)
        if not blind:
            return coroutines
        there = {coroutine.address for coroutine in coroutines}
        return (*coroutines, *(coroutine for address, coroutine in known.items() if address not in there))

    def best_modules(self, now: Iterable[Module]) -> tuple[Module, ...]:
        """Return each module as whoever had the better names described it."""
        known = {(module.path, module.base, module.build_id): module for module in self.modules}

        def better(module: Module) -> Module:
            old = known.get((module.path, module.base, module.build_id), module)
            return old if _knows(old) > _knows(module) else module

        return tuple(better(module) for module in now)

    def best_graph(self, now: LockGraph) -> LockGraph:
        """Return the graph with the BQL and the mutexes' names that only the binary tells."""
        old = self.graph
        if old is None:
            return now
        symbols = {mutex.address: mutex.symbol for mutex in old.mutexes}
        knows_bql = bool(old.bql_address) and not now.bql_address
        bql = old.bql_address if knows_bql else now.bql_address
        graph = msgspec.structs.replace(
            now,
            mutexes=tuple(
                msgspec.structs.replace(
                    mutex,
                    symbol=mutex.symbol or symbols.get(mutex.address, ""),
                    is_bql=mutex.address == bql,
                )
                for mutex in now.mutexes
            ),
        )
        if not knows_bql:
            return graph
        return msgspec.structs.replace(graph, bql_address=bql, bql_owner=old.bql_owner, bql_how_found=old.bql_how_found)

    def best_heap(self, now: Heap) -> Heap:
        """Return the new walk unless it saw nothing, or was ended where the earlier one was not."""
        old = self.heap
        if old is None or old.first is None:
            return now
        lost = now.first is None or (now.second is None and old.second is not None) or (now.why and not old.why)
        return old if lost else now


NOTHING = Earlier()


def read_previous(stored: Callable[[str], bytes], step: str = layout.GDB_THREADS) -> Earlier:
    """Return what a step's folder of the bundle says by now."""

    def decoded(file: str, kind: type[Record], nothing: Record) -> Record:
        try:
            return msgspec.json.decode(stored(layout.evidence(step, file)), type=kind)
        except (msgspec.DecodeError, RecursionError):
            return nothing

    def coroutines() -> tuple[Coroutine, ...]:
        try:
            return read_back(stored(layout.evidence(step, layout.COROUTINES)))
        except (msgspec.DecodeError, RecursionError):
            return ()

    return Earlier(
        backtrace=stored(layout.evidence(step, layout.BACKTRACE)).decode("utf-8", "backslashreplace"),
        threads=decoded(layout.THREADS, tuple[ThreadStack, ...], ()),
        coroutines=coroutines(),
        modules=decoded(layout.MODULES, tuple[Module, ...], ()),
        graph=decoded(layout.LOCKS, LockGraph | None, None),  # type: ignore[arg-type]  # a union is no type to mypy
        heap=decoded(layout.HEAP, Heap | None, None),  # type: ignore[arg-type]  # likewise
    )


def _knows(module: Module) -> tuple[int, bool]:
    return KNOWLEDGE.index(module.symbols), module.source != NOT_FOUND


def _better(old: Coroutine | None, now: Coroutine) -> Coroutine:
    """Return the better of two records of one coroutine, with what became of it as it was last seen."""
    if old is None or (old.pc, old.sp) != (now.pc, now.sp):
        return now
    unwound = len(now.frames) > 1
    if _worth(old.frames) <= _worth(now.frames) and (unwound or old.state == now.state):
        return now
    since = old.since_first if now.since_first == "unknown" else now.since_first
    same = old.same_request or now.same_request
    return msgspec.structs.replace(old, since_first=since, same_request=same)


def _stands_alike(one: ThreadStack, other: ThreadStack) -> bool:
    return bool(one.frames and other.frames) and one.frames[0].pc == other.frames[0].pc


def _worth(frames: Sequence[Frame]) -> tuple[bool, int, int, int]:
    lines, named = sum(bool(frame.line) for frame in frames), sum(bool(frame.function) for frame in frames)
    return len(frames) > 1, lines, named, len(frames)
