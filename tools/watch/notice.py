"""Wedges VMs in every way that the tests know, beside a watch that runs all the while; tells when it noticed each.

The clock of each begins when its last request is in flight. All of one QEMU are wedged at once. VMs are looked for each
second here, not each ten: elsewhere one is known for long before it stalls. With --known each runs for some seconds
before it is wedged, so that the watch has seen it well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from autopsy.drill.machine import Machine
from autopsy.watch.config import Sampling, WatchConfig
from autopsy.watch.loop import Watch
from autopsy.watch.model import Round
from support import lab
from support.builds import build
from support.wedged.noticed import WEDGES

PATIENCE = 30.0
KNOWN_SECONDS = 5.0  # in which a VM is found and looked at twice
UNKNOWN = lab.qemu
NICE = -5  # as the unit has it


def watch_process(notes: Path) -> int:
    """Fork a watch that writes down which process is called stalled or suspected, and when."""
    pid = os.fork()
    if pid:
        return pid
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    seen: set[tuple[int, str]] = set()

    def note(last: Round) -> None:
        with notes.open("a") as stream:
            for vm in last.vms:
                for what in (*(["suspect"] if vm.suspect or vm.stalled else []), *([vm.stalled] if vm.stalled else [])):
                    if (vm.pid, what) not in seen:
                        seen.add((vm.pid, what))
                        stream.write(json.dumps([time.monotonic(), vm.pid, what]) + "\n")

    try:
        config = WatchConfig(sampling=Sampling(vms_every_seconds=1.0))
        Watch(config=config, captures=False).run((note,), lambda seconds: bool(time.sleep(seconds)))
    finally:
        os._exit(0)


@contextmanager
def known_first(*words: Any, **settings: Any) -> Iterator[Machine]:
    """Run a QEMU for a while before anything is done to it."""
    with UNKNOWN(*words, **settings) as vm:
        time.sleep(KNOWN_SECONDS)
        yield vm


def noticed(label: str, only: frozenset[str], notes: Path) -> dict[str, tuple[float, str] | None]:
    """Wedge VMs of one QEMU; return after how many seconds each was called stalled, and what."""
    began: dict[str, tuple[int, float]] = {}
    with ExitStack() as wedged:
        for name, wedge, _ in WEDGES:
            if only and name not in only:
                continue
            try:
                stuck = wedged.enter_context(wedge(build(label)))
            except BaseException as error:  # noqa: BLE001 - pytest's own skip, too: this QEMU has none of it
                print(f"  {name}: not wedged: {type(error).__name__}: {str(error)[:100]}")
                continue
            began[name] = (stuck.vm.pid, time.monotonic())
        end = max(at for _, at in began.values()) + PATIENCE
        while time.monotonic() < end:
            time.sleep(1)
            told = [json.loads(line) for line in notes.read_text().splitlines()]
            calls = {pid: (at, what) for at, pid, what in reversed(told) if what != "suspect"}
            if all(pid in calls for pid, _ in began.values()):
                break
    return {name: (calls[pid][0] - at, calls[pid][1]) if pid in calls else None for name, (pid, at) in began.items()}


def main() -> None:
    """Say for each QEMU how long it took, at the median and at worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", default="7.2,10.0.2,11")
    parser.add_argument("--only", default="", help="wedges, by comma")
    parser.add_argument("--known", action="store_true", help="wedge what the watch has known for a while")
    given = parser.parse_args()
    if given.known:
        lab.qemu = known_first
    with tempfile.TemporaryDirectory(prefix="at-", dir="/var/tmp") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # a QEMU of another system sees what is mounted there
        notes = Path(folder) / "notes"
        notes.touch()
        watcher = watch_process(notes)
        try:
            for label in given.builds.split(","):
                found = noticed(label, frozenset(filter(None, given.only.split(","))), notes)
                for name, each in found.items():
                    print(f"  {name}: {f'{each[1]} after {each[0]:.1f} s' if each else 'not noticed'}")
                times = sorted(each[0] for each in found.values() if each)
                print(
                    f"{label}: {len(times)} of {len(found)} noticed, median {statistics.median(times):.1f} s, "
                    f"worst {times[-1]:.1f} s, {sum(each <= 10 for each in times)} within 10 s",
                    flush=True,
                )
        finally:
            os.kill(watcher, signal.SIGTERM)
            os.waitpid(watcher, 0)


if __name__ == "__main__":
    main()
