"""`autopsy watch`: rounds without end, or a few seconds of them for a script."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import cast

import msgspec

from autopsy.dataclass import dataclass
from autopsy.errors import UsageError
from autopsy.files.private import NotPrivate
from autopsy.fleet.places.opening import is_bucket
from autopsy.fleet.sending import spool
from autopsy.watch import ring
from autopsy.watch.config import Sending, WatchConfig
from autopsy.watch.discovery import Discovery
from autopsy.watch.launch import CaptureLauncher
from autopsy.watch.loop import Publish, Watch
from autopsy.watch.model import Round
from autopsy.watch.signs.monitor_asker import CountCompleted, MonitorAnswer
from autopsy.watch.state import left_round

ONCE_SECONDS = 4.0  # what stands for that long is told as stalled: longer than any request of a disk that is well
ONCE_EVERY = 1.0
MOST_DESCRIPTORS = 1 << 16
DISK_COUNTS = "autopsy.capture.qmp.disk_counts"
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def once(config: WatchConfig, only: frozenset[int] = frozenset()) -> Round:
    """Look for a few seconds, and return what stood all the while; nothing is captured, counted or written."""
    stages = msgspec.structs.replace(config.stages, stalled_seconds=config.stages.suspect_seconds)
    watch = Watch(config=msgspec.structs.replace(config, stages=stages), discovery=Discovery(only=only), captures=False)
    give_up = time.monotonic() + ONCE_SECONDS
    try:
        while True:
            last = watch.round(closely=True)
            left = give_up - time.monotonic()
            if left <= 0:
                return last
            time.sleep(min(ONCE_EVERY, left))
    finally:
        watch.close()


def watch_on(
    config: WatchConfig,
    publish: Sequence[Publish],
    *,
    captures: bool,
    say: Callable[[str], None],
    out: Path | None = None,
    only: frozenset[int] = frozenset(),
) -> None:
    """Go round until a signal asks to end; captures under way go on.

    `publish` is called with each finished round. Concurrency: none of it may start a thread, for the watch forks.

    Raises:
        UsageError: bundles are to be sent to what is no place.
    """
    is_bucket(config.sending.place)
    _allow_descriptors()
    folder = ring.run_folder()
    held: int | None = None
    try:
        held = ring.open_run_folder(folder)
        ring.tidy(held)
    except NotPrivate as error:
        say(f"note: no ring is kept, and nothing captured: {error.filename}: {error.strerror}")
    except OSError as error:
        say(f"note: no ring is kept, and nothing captured: {folder}: {error.strerror}")
    launcher = CaptureLauncher(folder, out) if captures and held is not None else None
    watch = Watch(
        config=config,
        discovery=Discovery(only=only),
        run_folder=held,
        launcher=launcher,
        captures=captures,
        sealed=partial(leave_to_be_sent, config.sending, say),
        count_completed=CompletedCounter().count,
        left=left_round(),
    )
    try:
        with _asked_to_end() as stopped:
            watch.run(publish, stopped)
    finally:
        watch.close()
        if held is not None:
            os.close(held)


@dataclass(slots=True)
class CompletedCounter:
    """Asks VMs what their disks have completed; what that takes is loaded by the process alone that does so."""

    ask: CountCompleted | None = None

    def count(self, pid: int, start_ticks: int) -> MonitorAnswer:
        """Ask one VM."""
        if self.ask is None:
            counter = import_module(DISK_COUNTS).counter()
            self.ask = cast("CountCompleted", counter.count)
        return self.ask(pid, start_ticks)


def leave_to_be_sent(where: Sending, say: Callable[[str], None], bundle: Path) -> None:
    """Put a bundle into the spool where the configuration names a place; nothing is sent from here."""
    if not where.place:
        return
    try:
        spool.enqueue(bundle, where.place, redact=where.redact, recipients=where.recipients)
    except (UsageError, OSError) as error:  # the bundle itself is where it was
        say(f"note: {bundle} is not left to be sent: {error}")


def _allow_descriptors() -> None:
    """Take as many descriptors as we may have: each thread of each VM is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MOST_DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _asked_to_end() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits for so many seconds, and tells whether a signal has asked us to end."""
    heard, telling = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def hear(_number: int, _frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(telling, b"e")

    before = {number: signal.signal(number, hear) for number in ENDING}

    def stopped(seconds: float) -> bool:
        poller = select.poll()
        poller.register(heard, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(heard)
        os.close(telling)
