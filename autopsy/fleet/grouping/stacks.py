"""Hashes the stacks that stand still, by the names of their functions, and by build-id and offset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b

from autopsy.bundle import layout, records
from autopsy.bundle.records import Frame
from autopsy.diagnose.frames.stacks import WaitKind, stacks
from autopsy.facts.cite import Known
from autopsy.facts.evidence import Evidence
from autopsy.facts.evidence import records as decode
from autopsy.facts.model.facts import Facts, Role
from autopsy.fleet.grouping.frames import spelled_stack

MOST_STACKS = 32  # different ones of a capture
STANDS = frozenset(WaitKind) - {WaitKind.RESTS, WaitKind.RUNS}


def standing(facts: Facts) -> tuple[tuple[Frame, ...], ...]:
    """Return the stacks of threads that wait and of requests that stand; the main thread's alone where none does."""
    threads = stacks(facts)
    waiting = [shown.thread.frames for shown in threads if shown.wait in STANDS]
    waiting = waiting or [shown.thread.frames for shown in threads if shown.thread.role is Role.MAIN]
    parked = facts.coroutines.value if isinstance(facts.coroutines, Known) else ()
    return (
        *(frames.value for frames in waiting if isinstance(frames, Known)),
        *(coroutine.frames for coroutine in parked if isinstance(coroutine.stuck, Known) and coroutine.stuck.value),
    )


def named(these: Iterable[tuple[Frame, ...]]) -> tuple[str, ...]:
    """Return the hashes by name; a stack without a name at all has none."""
    return _hashes(these, lambda frames: spelled_stack(frame.function for frame in frames))


def raw(these: Iterable[tuple[Frame, ...]], builds: Mapping[str, str]) -> tuple[str, ...]:
    """Return the hashes by build-id and offset, which no address of one run and no symbol changes."""
    return _hashes(these, lambda frames: tuple(_raw(frames, builds)))


def build_ids(evidence: Evidence) -> Mapping[str, str]:
    """Return the build-id of each file that was mapped, by its path."""
    modules = decode(evidence, layout.GDB_THREADS, layout.MODULES, tuple[records.Module, ...])
    return {module.path: module.build_id for module in modules.value} if isinstance(modules, Known) else {}


def _raw(frames: tuple[Frame, ...], builds: Mapping[str, str]) -> Iterator[str]:
    for frame in frames:
        if frame.module and not frame.inlined:
            yield f"{builds.get(frame.module) or frame.module.rpartition('/')[2]}+{frame.offset:x}"


def _hashes(
    these: Iterable[tuple[Frame, ...]], in_words: Callable[[tuple[Frame, ...]], tuple[str, ...]]
) -> tuple[str, ...]:
    hashes = {blake2b("\n".join(words).encode(), digest_size=8).hexdigest() for words in map(in_words, these) if words}
    return tuple(sorted(hashes))[:MOST_STACKS]
