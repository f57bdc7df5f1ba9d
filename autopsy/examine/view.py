"""What every part of an examination sees of the frozen process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import field

from autopsy.bundle.records import LeftOut, LockGraph, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines.find import Saved
from autopsy.examine.states import ThreadState, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The frozen process, opened. `second` is the second snapshot, readable by itself; `ends_at` is on time.monotonic.

    `threads` are empty where they could not be unwound; `saved` are the coroutines of the first snapshot as memory
    tells of them; `graph` is who waits for whom, once somebody has worked it out. A part adds to `left_out` what
    a limit of ours keeps from it. `seen` are the threads' states, where somebody has read them already.
    """

    frozen: Frozen
    core: Core
    second: Core | None
    symbols: Symbols
    threads: tuple[ThreadStack, ...]
    ends_at: float
    seen: Mapping[int, ThreadState] | None = None
    saved: tuple[Saved, ...] = ()
    graph: LockGraph | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    def states(self) -> Mapping[int, ThreadState]:
        """Return what was seen of each thread before the freeze."""
        return tasks(self.frozen.read) if self.seen is None else self.seen

    def left(self) -> float:
        """Return the seconds that are left, never less than zero."""
        return max(0.0, self.ends_at - time.monotonic())
