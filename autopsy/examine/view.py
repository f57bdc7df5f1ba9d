"""What every part of an examination sees of the frozen process."""

from __future__ import annotations

import time
from dataclasses import field

from autopsy.bundle.records import LeftOut, LockGraph, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines.find import Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The frozen process, opened. `second` is the second snapshot, readable by itself; `ends_at` is on time.monotonic.

    `threads` are empty where they could not be unwound; `saved` are the coroutines of the first snapshot as memory
    tells of them; `graph` is who waits for whom, once somebody has worked it out. A part adds to `left_out` what
    a limit of ours keeps from it.
    """

    frozen: Frozen
    core: Core
    second: Core | None
    symbols: Symbols
    threads: tuple[ThreadStack, ...]
    ends_at: float
    saved: tuple[Saved, ...] = ()
    graph: LockGraph | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that are left, never less than zero."""
        return max(0.0, self.ends_at - time.monotonic())
