"""Watches single VMs of a test, in this very process, and tells when what was noticed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.watch.discovery import Discovery
from autopsy.watch.loop import Watch
from autopsy.watch.model import StallKind, WatchedVm


@contextmanager
def watching(*pids: int, **more: object) -> Iterator[Watch]:
    """Watch these processes and no other; nothing is captured."""
    watch = Watch(discovery=Discovery(only=frozenset(pids)), captures=False, **more)  # type: ignore[arg-type]  # by name
    try:
        yield watch
    finally:
        watch.close()


def rounds(watch: Watch, seconds: float) -> Iterator[dict[int, WatchedVm]]:
    """Go round as the watch would, and yield what each round tells of each process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield {vm.pid: vm for vm in watch.round().vms}
        suspect = any(each.suspect for each in watch.vms.values())
        time.sleep(1.0 if suspect else watch.config.sampling.every_seconds)


def noticed(watch: Watch, pid: int, seconds: float = 25.0) -> tuple[StallKind | None, float]:
    """Return what a VM is called stalled by, and after how long; None where it is not called so."""
    began = time.monotonic()
    for vms in rounds(watch, seconds):
        if pid in vms and (kind := vms[pid].stalled) is not None:
            return kind, time.monotonic() - began
    return None, time.monotonic() - began
