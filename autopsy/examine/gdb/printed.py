"""Have gdb print every stack of a core of our making, once more where it dies of one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.examine.gdb.backtrace import blocks
from autopsy.examine.gdb.mi import Gdb, GdbError, GdbOutput, NoGdb

THREAD = re.compile(r"^Thread (\d+) \(", re.MULTILINE)
BEGUN_BYTES = 16 << 10  # of commands at once: a pipe holds four times as many
MOST_DEATHS = 4  # of gdb in one examination: each costs a tenth of a second and one stack


@dataclass(frozen=True, slots=True)
class Printed:
    """What gdb printed of the stacks, and its log; of those in `cut`, by thread, it may not have come to the end."""

    text: str = ""
    log: bytes = b""
    trouble: str = ""
    remedy: str = ""
    cut: frozenset[int] = frozenset()


class EarlyGdb:
    """A gdb that starts while it is worked out what it is to print, where it is not to be spared.

    To start takes it longer than to load a core.
    """

    def __init__(self, scratch: Path, *, without: str) -> None:
        self.without = without
        self._gdb: Gdb | None = None
        self._why: ExaminationFailed | None = None
        try:
            if not without:
                self._gdb = Gdb(scratch.absolute(), ends_at=time.monotonic())
        except ExaminationFailed as error:
            self._why = error

    @property
    def pid(self) -> int | None:
        """Return the process ID of the one that nobody has taken yet, None where there is none."""
        return None if self._gdb is None else self._gdb.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, where nobody has taken it."""
        if self._gdb is not None:
            self._gdb.__exit__(kind, error, trace)

    def take(self, scratch: Path, ends_at: float) -> Gdb:
        """Return it, or another one once it was taken. Whoever has it ends it.

        Raises:
            NoGdb: there is none, or it is to be spared.
            ExaminationFailed: it cannot be started.
        """
        if self.without:
            raise NoGdb("gdb", f"was spared, {self.without}", remedy="autopsy examine BUNDLE")
        if self._why is not None:
            raise self._why
        if self._gdb is None:
            return Gdb(scratch, ends_at=ends_at)
        gdb, self._gdb = self._gdb, None
        gdb.ends_at = ends_at
        return gdb


def print_stacks(
    early: EarlyGdb,
    loads: Sequence[Sequence[str]],
    scratch: Path,
    ends_at: float,
    threads: int,
    *,
    meanwhile: Callable[[], None],
) -> Printed:
    """Return what gdb printed of every stack, and what went wrong; `meanwhile` is called while one loads.

    gdb dies of some libraries: another one is given less to load (the next of `loads`). A stack that it dies of all the
    same costs itself: the next gdb goes on with the thread after it, a few times.

    Raises:
        NoGdb: there is none, or it is to be spared.
    """
    printed: list[str] = []
    trouble: list[str] = []
    cut: set[int] = set()
    log = b""
    first = 1
    for attempt in range(MOST_DEATHS):
        which = "all -ascending" if first == 1 else f"{first}-{threads}"
        try:
            with early.take(scratch, ends_at) as gdb:
                load = loads[min(attempt, len(loads) - 1)]
                answer, cause = _stacks(gdb, load, f"thread apply {which} -c bt", trouble, meanwhile)
                log += gdb.log()
        except NoGdb:
            raise
        except ExaminationFailed as error:  # whatever is installed by that name, it is no program
            trouble.append(f"gdb {error.cause}")
            break
        printed.append(answer.text)
        if answer.whole:
            break
        cut.update(block.lwp for block in list(blocks(answer.text))[-1:])
        if not cause:
            late = time.monotonic() >= ends_at
            trouble.append("gdb was ended at its deadline" if late else "gdb printed more than it may")
            break
        trouble.append(f"gdb {cause}")
        last = max(map(int, THREAD.findall(answer.text)), default=0)
        first = max(first, last + 1) if attempt + 1 < len(loads) else max(first, last) + 1
        if first > threads:
            break
    return Printed("".join(printed), log, "; ".join(dict.fromkeys(trouble)), cut=frozenset(cut))


def _stacks(
    gdb: Gdb, preparation: Sequence[str], command: str, trouble: list[str], meanwhile: Callable[[], None]
) -> tuple[GdbOutput, str]:
    """Load core and images and return the stacks, and how gdb died, empty where it lives. What it refuses is noted."""
    try:
        sizes = accumulate(map(len, preparation))
        begun = [gdb.begin(line) for line, size in zip(preparation, sizes, strict=True) if size <= BEGUN_BYTES]
        meanwhile()
        for number, line in enumerate(preparation):
            try:
                if not (gdb.answer(begun[number]) if number < len(begun) else gdb.run(line)).whole:
                    break
            except GdbError as error:
                trouble.append(f"gdb: {error}")
        answer = gdb.run(command)
    except GdbError as error:
        trouble.append(f"gdb: {error}")
        return GdbOutput("", whole=True), ""
    except ExaminationFailed as error:
        return GdbOutput("", whole=False), error.cause
    return answer, gdb.how_it_ended() if gdb.gone else ""
