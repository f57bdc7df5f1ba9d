"""Where a drill is set up: one folder, and one list of what must be undone, whatever happens."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import field
from pathlib import Path
from types import FrameType

from autopsy.dataclass import dataclass
from autopsy.files.scratch_place import scratch_place

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PREFIX = "autopsy-"


@dataclass(frozen=True, slots=True)
class Site:
    """`undo` is closed last thing first. With `keep`, what is set up outlives us if all goes well.

    `by_hand` gathers the commands that undo it, in the order in which things were set up.
    """

    folder: Path
    undo: ExitStack
    keep: bool = False
    by_hand: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def endings(self) -> tuple[tuple[str, ...], ...]:
        """Return the commands that undo everything by hand, in the order in which to run them."""
        return tuple(reversed(self.by_hand))


@contextmanager
def site(*, keep: bool = False) -> Iterator[Site]:
    """Make a folder with a short path (a UNIX socket's has 107 bytes), and undo everything on the way out."""
    with undisturbed():
        undo = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch_place()))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
    try:
        yield Site(folder, undo, keep, [("rm", "-r", str(folder))])
        if keep:
            undo.pop_all()
    finally:
        with undisturbed():
            undo.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP until the block is over: between a start and the note of how to undo it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are delivered to the main thread only
        return
    arrived: list[int] = []

    def hold_back(number: int, frame: FrameType | None) -> None:
        del frame
        arrived.append(number)

    before = {number: signal.signal(number, hold_back) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end us as Ctrl-C does, through every `finally`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup's SIG_IGN stays what it is
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
