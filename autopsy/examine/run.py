"""Examine a capture's frozen bytes, part by part, so that no part's failure costs another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import cache, partial

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.records import Coroutine, LeftOut, LockGraph, Module, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.examine import previous as earlier
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core, CoreError
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import compare, listing, stored
from autopsy.examine.coroutines import find as coroutines
from autopsy.examine.coroutines.find import Saved
from autopsy.examine.gdb import unwind
from autopsy.examine.gdb.printed import EarlyGdb
from autopsy.examine.gdb.source_lines import Lines
from autopsy.examine.gdb.unwind import Parked, Unwound
from autopsy.examine.heap import run, virtqueues
from autopsy.examine.heap.run import Walking
from autopsy.examine.previous import Earlier
from autopsy.examine.states import ThreadState, tasks
from autopsy.examine.threads import aio_rings, aio_workers, lock_owners, main_loop, poll_sets
from autopsy.examine.view import View

__all__ = ["ExaminationFailed", "examine_core"]

STACKS_SHARE = 0.8  # of the time that is given: locks, rings and the heap come after them

Parts = tuple[tuple[str, Callable[[View], object]], ...]

# What is read out of the opened process without its stacks, while gdb works. A second look waits for the first.
WITHOUT_STACKS: Parts = (
    ("virtqueues", virtqueues.examine_virtqueues),
    ("rings", aio_rings.examine_aio_rings),
    ("eventfds", poll_sets.examine_poll_sets),
)
# What is read out of it once its stacks and its locks are known, in this order.
WITH_STACKS: Parts = (
    ("main loop", main_loop.examine_main_loop),
    ("workers", aio_workers.examine_aio_workers),
)


@dataclass(slots=True)
class Progress:
    """What went wrong on the way: `notes` are told, `fatal` fails the step once everything else is written."""

    notes: list[str] = field(default_factory=list)
    fatal: list[ExaminationFailed] = field(default_factory=list)

    def attempt(self, name: str, part: Callable[[], object]) -> None:
        """Run one part; its failure is a note."""
        try:
            part()
        except ExaminationFailed as error:
            self.fatal.append(error)
        except Exception as error:  # noqa: BLE001 - a bug in one part must not cost the others their evidence
            self.notes.append(f"{name}: {type(error).__name__}: {error}")


@dataclass(slots=True, kw_only=True)
class Opened:
    """The frozen process as it becomes known: each part adds what it found, and writes it at once."""

    frozen: Frozen
    core: Core
    symbols: Symbols
    states: Mapping[int, ThreadState]
    earlier: Earlier
    modules: tuple[Module, ...]
    second: Core | None = None
    saved: tuple[Saved, ...] = ()
    parked: list[Parked] = field(default_factory=list)
    threads: tuple[ThreadStack, ...] = ()
    coroutines: tuple[Coroutine, ...] = ()
    walking: Walking | None = None
    graph: LockGraph | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def comms(self) -> dict[int, str]:
        """Return the threads' names."""
        return {tid: state.comm for tid, state in self.states.items()}

    def store(self, file: str, records: object) -> None:
        """Write records as indented JSON, for eyes as much as for the analyzer."""
        self.frozen.write(file, msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n")

    def look_again(self) -> None:
        """Open the second snapshot over the first."""
        if self.frozen.second_core is not None:
            self.second = Core.over(self.core, Core(self.frozen.second_core))

    def stand(self) -> None:
        """Tell where each thread stood: all that is known without a debugger."""
        comms = self.comms
        self.tell([unwind.bare(thread, self.symbols, comms, "not unwound") for thread in self.core.threads], "")

    def tell(self, threads: Sequence[ThreadStack], backtrace: str) -> None:
        """Write the threads, and the backtrace that they cite."""
        self.threads, text = self.earlier.best_threads(threads, backtrace)
        if text:
            self.frozen.write(layout.BACKTRACE, text.encode("utf-8", "backslashreplace"))
        self.store(layout.THREADS, self.threads)

    def find_coroutines(self) -> None:
        """Find the coroutines, and what became of each until the second snapshot."""
        self.saved = coroutines.find_coroutines(self.core, self.symbols, self.left_out)
        current = [Parked(self.core, saved) for saved in self.saved]
        if self.second is not None:
            later = coroutines.find_coroutines(self.second, self.symbols)
            compared = compare.compare(self.core, [located.saved for located in current], self.second, later)
            current = [Parked(self.core, saved) for saved in compared.first]
            current += [Parked(self.second, saved) for saved in compared.new]
        self.parked = [located for located in current if located.saved.coroutine.state == "parked"]
        self.show(_standing(located.saved.coroutine, self.symbols) for located in current)

    def show(self, current: Iterable[Coroutine]) -> None:
        """Write the coroutines, for the analyzer and for eyes."""
        main = self.symbols.main
        best = self.earlier.best_coroutines(current, blind=main is None or main.file is None)
        text, self.coroutines = listing.render(best, self.graph.comutexes if self.graph else ())
        self.frozen.write(layout.COROUTINES, stored.as_text(self.coroutines))
        self.frozen.write(layout.COROUTINES_TEXT, text.encode("utf-8", "backslashreplace"))

    def start_heap(self, seconds: float) -> None:
        """Begin to walk the heap, in a process of its own beside gdb."""
        self.walking = run.start(self.frozen, self.symbols, seconds)

    def finish_heap(self) -> None:
        """Wait for the heap."""
        if self.walking is not None:
            run.finish(self.walking, self.comms, self.threads, self.earlier)

    def unwind(self, early: EarlyGdb, meanwhile: Callable[[], None]) -> Unwound:
        """Unwind threads and coroutines with gdb, and have something else done while that works."""
        unwound = unwind.unwind(
            self.core,
            self.symbols,
            self.parked,
            comms=self.comms,
            saved=self.saved,
            scratch=self.frozen.scratch,
            ends_at=time.monotonic() + self.frozen.seconds * STACKS_SHARE,
            early=early,
            meanwhile=meanwhile,
        )
        self.frozen.write(layout.GDB_LOG, unwound.log)
        self.tell(unwound.threads, unwound.backtrace)
        self.show(unwind.with_frames(coroutine, unwound.coroutines, self.symbols) for coroutine in self.coroutines)
        return unwound

    def find_lines(self) -> None:
        """Name what an earlier examination unwound, where only a debug file is at hand."""
        lines = Lines(self.symbols)
        stacks = [*(thread.frames for thread in self.threads), *(coroutine.frames for coroutine in self.coroutines)]
        lines.look_up(stacks, self.frozen.scratch, time.monotonic() + self.frozen.seconds * STACKS_SHARE)
        self.threads = tuple(
            msgspec.structs.replace(thread, frames=lines.named(thread.frames)) for thread in self.threads
        )
        self.store(layout.THREADS, self.threads)
        self.show(
            [msgspec.structs.replace(coroutine, frames=lines.named(coroutine.frames)) for coroutine in self.coroutines]
        )

    def find_locks(self, view: View) -> None:
        """Tell who waits for whom."""
        self.graph = lock_owners.examine_locks(view, self.earlier)
        if self.graph.comutexes:
            self.show(self.coroutines)


def examine_core(frozen: Frozen) -> str:
    """Work out everything that the frozen bytes tell, write it, and return a line about it.

    Raises ExaminationFailed, after everything that could be told was written, if there is no core or no gdb.
    """
    ends_at = time.monotonic() + frozen.seconds
    try:
        core = Core(frozen.core)
    except CoreError as error:
        raise ExaminationFailed("core", str(error), remedy="capture again; see the outcome of freeze") from error
    progress = Progress()
    with EarlyGdb(frozen.scratch, without=frozen.without_gdb) as early:
        opened = _opened(frozen, core)
        progress.attempt("second core", opened.look_again)
        progress.attempt("threads", opened.stand)
        progress.attempt("heap", lambda: opened.start_heap(ends_at - time.monotonic()))
        progress.attempt("coroutines", opened.find_coroutines)
        core.let_go()
        _examine_stacks(opened, ends_at, early, progress)
    progress.attempt("heap", opened.finish_heap)
    if opened.left_out:
        progress.attempt("limits", partial(opened.store, layout.LEFT_OUT, opened.left_out))
    for failure in progress.fatal:
        raise failure
    return "; ".join([_summary(opened), *progress.notes])


def _opened(frozen: Frozen, core: Core) -> Opened:
    """Return what is known of a core before it is searched, its modules written."""
    symbols = Symbols(core, frozen)
    known = earlier.read_previous(frozen.read)
    opened = Opened(
        frozen=frozen,
        core=core,
        symbols=symbols,
        states=tasks(frozen.read),
        earlier=known,
        modules=known.best_modules(symbols.modules),
    )
    if symbols.beyond:
        why = f"{symbols.beyond} were not looked at"
        opened.left_out.append(LeftOut(what="there are more programs and libraries than are told", why=why))
    opened.store(layout.MODULES, opened.modules)
    return opened


def _examine_stacks(opened: Opened, ends_at: float, early: EarlyGdb, progress: Progress) -> None:
    """Unwind all stacks, and work out what needs none of them meanwhile, then what does."""
    view = View(
        frozen=opened.frozen,
        core=opened.core,
        second=opened.second,
        symbols=opened.symbols,
        threads=opened.threads,
        saved=opened.saved,
        ends_at=ends_at,
        left_out=opened.left_out,
        seen=opened.states,
    )

    def attempt(parts: Parts, view: View) -> None:
        for name, part in parts:
            progress.attempt(name, partial(part, view))
            opened.core.let_go()

    @cache
    def meanwhile() -> None:
        attempt(WITHOUT_STACKS, view)

    def by_gdb() -> None:
        if note := opened.unwind(early, meanwhile).note:
            progress.notes.append(note)

    progress.attempt("gdb", by_gdb)
    meanwhile()  # where no gdb could be started
    main = opened.symbols.main
    if main and main.debug and not main.file:
        progress.attempt("lines", opened.find_lines)
    view = replace(view, threads=opened.threads)
    progress.attempt("locks", partial(opened.find_locks, view))
    opened.core.let_go()
    attempt(WITH_STACKS, replace(view, graph=opened.graph))


def _standing(coroutine: Coroutine, symbols: Symbols) -> Coroutine:
    """Return the coroutine with the one frame that its saved pc tells."""
    if coroutine.state not in ("parked", "unclear") or not coroutine.pc:
        return coroutine
    return msgspec.structs.replace(coroutine, frames=(symbols.frame(coroutine.pc),))


def _summary(opened: Opened) -> str:
    states = Counter(coroutine.state for coroutine in opened.coroutines)
    main = opened.symbols.main
    best = next((module.symbols for module in opened.modules if main and module.path == main.path), "none")
    return (
        f"{len(opened.threads)} threads, {states['parked']} parked coroutines"
        f" ({states['running']} running, {states['pooled']} pooled, {states['unclear']} unclear); symbols: {best}"
    )
