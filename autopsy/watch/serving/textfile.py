"""Keeps a file of metrics up to date for node_exporter's textfile collector: whole at every moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from autopsy.files import private
from autopsy.linux.confine import sandbox
from autopsy.watch.model import StallKind
from autopsy.watch.serving.outlet import RoundFeed, readable
from autopsy.watch.state import WatchSnapshot, decode

NAME = "autopsy.prom"
EVERY_SECONDS = 15.0  # or at once, where a stall has begun or ended
FOR_ALL = 0o644  # node_exporter is another user
TEMPORARY = (f".{NAME}.", private.HALF)


def keep(folder: Path, feed: RoundFeed) -> None:
    """Write until the watch ends: the work of an outlet. The file then goes: it would look like peace."""
    from autopsy.watch.serving.metrics import Exposition  # noqa: PLC0415 - the watch itself needs no client

    try:
        held = private.hold(folder)
        _tidy(held)
    except OSError as error:
        feed.refuse(error.strerror or str(error))
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who ends a unit signals all of it: we end with the watch
    exposition = Exposition()
    sandbox.keep_no_rights(writable=(folder,))
    feed.ready()
    last, stalled = -EVERY_SECONDS, dict[str, StallKind]()
    try:
        while True:
            readable(feed.fileno(), seconds=None)
            data = feed.take()
            if data is None:
                return
            now, snapshot = time.monotonic(), decode(data) if data else None
            if snapshot is None or (now < last + EVERY_SECONDS and _stalled(snapshot) == stalled):
                continue
            last, stalled = now, _stalled(snapshot)
            with contextlib.suppress(OSError):  # full, or read-only: the file's age tells
                write(held, exposition.text(snapshot))
    finally:
        with contextlib.suppress(OSError):
            os.unlink(NAME, dir_fd=held)


def write(folder: int, text: bytes) -> None:
    """Replace the file of a folder that is held; others may read it."""
    with private.replacing(folder, NAME) as stream:
        stream.write(text)
        os.fchmod(stream.fileno(), FOR_ALL)


def _tidy(folder: int) -> None:
    """Remove what a watch that was killed had half written."""
    begin, end = TEMPORARY
    for name in os.listdir(folder):
        if name.startswith(begin) and name.endswith(end):
            os.unlink(name, dir_fd=folder)


def _stalled(snapshot: WatchSnapshot) -> dict[str, StallKind]:
    return {vm.name: vm.stalled for vm in snapshot.round.vms if vm.stalled is not None}
