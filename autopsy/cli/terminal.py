"""What a person at a terminal is shown while it goes on: the steps, the notes, and the table of VMs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING, Literal, TextIO

from autopsy.bundle import layout
from autopsy.bundle.manifest import StepRecord
from autopsy.capture.run import Interrupted
from autopsy.capture.step import Step
from autopsy.cli import streams
from autopsy.dataclass import dataclass
from autopsy.errors import ExitCode
from autopsy.text import plain

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from autopsy.commands.ending import Ended
    from autopsy.target.ps import ListedVm

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WIDTH = 20  # of the longest step's name, with room
LEAST_WIDTH = 40
SEALING = "sealing what is there; once more ends it at once"


@dataclass(slots=True)
class Interrupt:
    """Remembers that a person pressed Ctrl-C; the runner hears of it at the next tick."""

    wanted: bool = False
    pressed: bool = False

    def check(self) -> None:
        """Raise Interrupted once."""
        if self.wanted:
            self.wanted = False
            raise Interrupted


@dataclass(slots=True)
class PlainLines:
    """One line a step on stderr, for logs and pipes."""

    interrupt: Interrupt
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    curious: bool = False

    def began(self, step: Step) -> None:
        """Say nothing yet: the line comes with the outcome."""

    def ended(self, record: StepRecord) -> None:
        """Print the step's line."""
        with contextlib.suppress(OSError):  # whoever listened has gone; the capture goes on
            print(line(record), file=self.stream, flush=True)

    def tick(self) -> None:
        """Stop when asked to."""
        self.interrupt.check()

    def tell(self, words: str) -> None:
        """Say nothing: a log is for what came of it."""


def line(record: StepRecord) -> str:
    """Return `witness              Collected     12 ms  why`."""
    ms = (record.end_ns - record.start_ns) / 1e6
    stop = f"; the VM stood still for {record.stop_ns / 1e6:.2f} ms" if record.stop_ns else ""
    return f"{record.name:<{WIDTH}} {record.outcome:<9} {ms:>7.0f} ms  {plain(record.why + stop).lstrip('; ')}".rstrip()


MEANWHILE = {layout.SECOND_EXPOSURE: "waits to see what does not move"}
COLOURS = {"Collected": "", "TimedOut": "yellow", "Failed": "red", "Skipped": "yellow"}


@dataclass(slots=True)
class SilentProgress:
    """Says nothing of the steps."""

    interrupt: Interrupt
    curious: bool = False

    def began(self, step: Step) -> None:
        """Say nothing."""

    def ended(self, record: StepRecord) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Stop when asked to."""
        self.interrupt.check()

    def tell(self, words: str) -> None:
        """Say nothing."""


@dataclass(slots=True)
class LiveList:
    """The steps as they go, on a terminal: a line that counts, and each that has not collected its evidence.

    With `verbose` each step has its line.
    """

    interrupt: Interrupt
    live: Live
    verbose: bool = False
    records: list[StepRecord] = field(default_factory=list)
    current: str = ""
    since: float = 0.0
    words: str = ""
    curious: bool = True

    def began(self, step: Step) -> None:
        """Show the step as running."""
        self.current, self.since, self.words = step.name, time.monotonic(), ""
        self._show()

    def ended(self, record: StepRecord) -> None:
        """Show the step's outcome."""
        self.records.append(record)
        self.current = self.words = ""
        self._show()

    def tick(self) -> None:
        """Move the clock on, and stop when asked to."""
        self._show()
        self.interrupt.check()

    def tell(self, words: str) -> None:
        """Show the words in the last line; once the steps are over, they are the last line."""
        self.words = plain(words)
        self._show()

    def _show(self) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone; the capture goes on
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            if columns > LEAST_WIDTH:  # a terminal of no size has 0
                # With room for the terminal's ^C: what wraps would move the lines that are written over.
                self.live.console.width = columns - len("^C") - 1
            self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=WIDTH)
        table.add_column(min_width=9)
        table.add_column(justify="right", min_width=10)
        table.add_column(overflow="fold")
        shown = [record for record in self.records if self.verbose or record.outcome != "Collected"]
        if self.records:
            collected = sum(record.outcome == "Collected" for record in self.records)
            stop = sum(record.stop_ns for record in self.records) / 1e6
            took = sum(record.end_ns - record.start_ns for record in self.records) / 1e6
            words = (
                f"{collected} of {len(self.records)} steps have their evidence; the VM stood still {stop:.1f} ms in all"
            )
            table.add_row("looked", "", f"{took:.0f} ms", Text(words))
        for record in shown:
            _, _, rest = line(record).partition(" ms")
            ms = (record.end_ns - record.start_ns) / 1e6
            table.add_row(
                record.name, Text(record.outcome, style=COLOURS[record.outcome]), f"{ms:.0f} ms", Text(rest.strip())
            )
        if self.current:
            running = f"{(time.monotonic() - self.since) * 1e3:.0f} ms"
            doing = MEANWHILE.get(self.current, "")
            table.add_row(self.current, Text("…"), running, Text(f"{doing}; {self.words}" if self.words else doing))
        elif self.words:
            table.add_row(Text(self.words.partition(": ")[0]), "", "", Text(self.words.partition(": ")[2]))
        if self.interrupt.pressed:
            table.add_row(Text("interrupted", style="yellow"), "", "", Text(SEALING))
        return table


@contextlib.contextmanager
def watcher(*, verbose: bool = False, quiet: bool = False) -> Iterator[PlainLines | LiveList | SilentProgress]:
    """Yield whoever shows the steps: live on a terminal, plain lines elsewhere, nobody where it is to be `quiet`.

    The first SIGINT, SIGTERM or SIGHUP ends the step at hand and seals what is there; the second ends us at once, and
    with us every child, which releases the VM wherever it was.
    """
    interrupt = Interrupt()
    is_live = not quiet and sys.stderr.isatty()

    def stop(number: int, _: object) -> None:
        if interrupt.pressed:
            os._exit(ExitCode.INTERRUPTED)
        interrupt.pressed = interrupt.wanted = True
        if is_live:
            return  # the list says it; what is written beside it would be in its way
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            if streams.takes(2):
                os.write(2, f"\nautopsy: {name}: {SEALING}\n".encode())

    # What nohup, or a shell that runs us in the background, has us ignore stays ignored.
    heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        if not is_live:
            yield SilentProgress(interrupt) if quiet else PlainLines(interrupt)
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), auto_refresh=False) as live:
            yield LiveList(interrupt, live, verbose)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def story(ended: Ended) -> Iterator[str]:
    """Yield what a person must know besides the result: notes, what became of the kill and of the start.

    Where both are read on one terminal, the result alone tells the latter.
    """
    for note in ended.captured.notes:
        yield f"note: {plain(note)}"
    if sys.stdout is not None and sys.stdout.isatty() and sys.stderr.isatty():
        return
    if ended.kill_asked:
        yield plain(f"kill: {ended.kill_words}")
    if ended.start_words:
        yield plain(f"start: {ended.start_words}")


OLDEST = "OLDEST"  # of its requests, by a watch: where none runs there is no such column
PS_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("MANAGER", "left"),
    ("NAME", "left"),
    ("PID", "right"),
    ("QEMU", "left"),
    ("DISKS", "right"),
    ("REQ", "right"),
    (OLDEST, "right"),
    ("D", "right"),
    ("CPU%", "right"),
    ("SIGNS", "left"),
)
NO_WIDTH = 4096  # a pipe or a file has none: a VM stays one line, for grep and awk


def _or_unknown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _qemu(vm: ListedVm) -> str:
    version = vm.qemu_version.partition(" ")[0] or "?"
    return version if vm.program == "qemu-system" else f"{version} (storage daemon)"


def _age(seconds: float | None) -> str:
    """Return for how long the oldest request has not moved, nothing where all do."""
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds >= 1 else "-"


def ps_lines(vms: tuple[ListedVm, ...], width: int = 0) -> Iterator[str]:
    """Yield a table of VMs, a line each; `width` is the terminal's, 0 where nothing is cut for want of one."""
    if not vms:
        yield "no QEMU runs on this host (or none that you may see: try as root)"
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    watched = any(vm.oldest_request_seconds is not None for vm in vms)
    for title, justify in PS_COLUMNS:
        if title == OLDEST and not watched:
            continue
        table.add_column(title, justify=justify, no_wrap=title != PS_COLUMNS[-1][0], overflow="fold")
    for vm in vms:
        row = (
            vm.manager,
            plain(vm.name),
            str(vm.pid),
            _qemu(vm),
            _or_unknown(vm.disks),
            _or_unknown(vm.parked_requests),
            *((_age(vm.oldest_request_seconds),) if watched else ()),
            str(vm.threads_in_d),
            f"{vm.cpu_percent:.0f}",
            plain("; ".join(vm.signs)),
        )
        table.add_row(*map(Text, row))  # no markup: names are chosen by strangers
    console = Console(width=width or NO_WIDTH, color_system=None, highlight=False, emoji=False)
    with console.capture() as drawn:
        console.print(table)
    yield from (line.rstrip() for line in drawn.get().splitlines())
