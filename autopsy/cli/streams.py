"""Keeps a capture going whoever hears of it: a log on a full or frozen disk, a terminal or a reader that has stopped.

What cannot be written in time is dropped, and so is all that comes after it; nothing waits for it, least of all a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import TextIO, cast

from autopsy.dataclass import dataclass
from autopsy.linux.child import ChildFailed, ChildTimedOut, in_child

SECONDS = 2.0
PART_BYTES = 512  # what a pipe or a terminal takes at once that says it is ready


class _Patient(io.RawIOBase):
    """One descriptor of ours; `lost` says why nothing is written to it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lost = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]  # Buffer is Python 3.12's
        written = bytes(data)
        if not self.lost:
            try:
                self._write(written)
            except (ChildTimedOut, TimeoutError):
                self.lost = f"it takes nothing in {SECONDS:.0f} s"
            except ChildFailed as error:
                self.lost = str(error)
            except OSError as error:
                self.lost = error.strerror or str(error)
        return len(written)

    def _write(self, data: bytes) -> None:
        if stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            # A child of ours has no stdout, so this one gets a copy. No other may have one: a reader would wait for the
            # end of a child that sleeps in the kernel.
            copy = fcntl.fcntl(self.descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
            try:
                in_child(partial(_write_file, copy, data), SECONDS)
            finally:
                os.close(copy)
            return
        poller = select.poll()
        poller.register(self.descriptor, select.POLLOUT)
        give_up = time.monotonic() + SECONDS
        while data:
            if not poller.poll(max(0.0, give_up - time.monotonic()) * 1000):
                raise TimeoutError
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self.descriptor, data[:PART_BYTES]) :]


def takes(descriptor: int) -> bool:
    """Tell whether a few words can be written at once, whatever happens: of a file nobody knows that beforehand."""
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return not stat.S_ISREG(os.fstat(descriptor).st_mode) and bool(poller.poll(0))


def _write_file(descriptor: int, data: bytes) -> bytes:
    while data:
        data = data[os.write(descriptor, data) :]
    return b""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Our stdout and stderr while they are guarded; None where one was closed from the beginning."""

    out: _Patient | None
    err: _Patient | None


@contextlib.contextmanager
def guarded() -> Iterator[Listeners]:
    """Let nothing that is printed within wait for longer than a moment."""
    before = sys.stdout, sys.stderr
    out = None if sys.stdout is None else _Patient(sys.stdout.fileno())
    err = None if sys.stderr is None else _Patient(sys.stderr.fileno())
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    try:
        yield Listeners(out, err)
    finally:
        sys.stdout, sys.stderr = before


def _text(patient: _Patient | None, before: TextIO) -> TextIO:
    if patient is None:
        return before
    before.flush()
    # It needs no more of what is below it than a raw stream has, as long as it writes through.
    return io.TextIOWrapper(cast("io.BufferedWriter", patient), before.encoding, "backslashreplace", write_through=True)
