"""Wedges VMs in every way that the tests know, beside a watch that runs all the while; tells when it noticed each.

The clock of each begins when its last request is in flight, and ends when the metric says so. All of one QEMU are
wedged at once, or with --alone one after the other. With --known each runs for some seconds before it is wedged, so
that the watch has seen it well, as it has seen most that stall.
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
from autopsy.watch.judge import StandStill
from autopsy.watch.loop import Watch
from autopsy.watch.model import Round
from support import lab
from support.builds import build
from support.wedged.noticed import WEDGES

PATIENCE = 30.0
KNOWN_SECONDS = 6.0  # in which a VM is found and looked at twice
UNKNOWN = lab.qemu
NICE = -5  # as the unit has it


def _told(stands: StandStill | None) -> list[Any] | None:
    return None if stands is None else [stands.kind.value, stands.age_ns / 1e9, stands.most_ns / 1e9]


def record(watch: Watch, last: Round, trace: Path) -> None:
    """Write down what a round has seen of each VM that it has sampled, and what that added up to."""
    now = time.monotonic()
    with trace.open("a") as stream:
        for sampled in watch.vms.values():
            judge, sample, episode = sampled.judge, sampled.sample, sampled.stages.episode
            if sample is None:
                continue
            row = {
                "at": now,
                "took": last.sample_seconds,
                "late": last.samples_late,
                "pid": sampled.vm.pid,
                "sampled": sample.at_ns / 1e9,
                "looked": sample.look is not None and len(sample.look.parked),
                "hung": sample.hung,
                "ran": sample.ran,
                "starved": sample.starved_ns / 1e9,
                "halted": sample.halted and sample.halted.value,
                "lost": judge.lost_ns / 1e9,
                "state": sampled.judged.state.value,
                "unmoved": len(judge.requests.unmoved),
                "moved": judge.requests.moved,
                "in_flight": judge.requests.in_flight,
                "oldest": sampled.judged.oldest_ns / 1e9,
                "stands": sampled.judged.stands and _told(sampled.judged.stands),
                "episode": episode and [episode.seconds, episode.stalled],
                "main": sample.main and [sample.main.state, sample.main.wchan, sample.main.still_ns / 1e9],
            }
            stream.write(json.dumps(row) + "\n")


def watch_process(notes: Path, trace: Path | None) -> int:
    """Fork a watch that writes down which process is called stalled or suspected, and when."""
    pid = os.fork()
    if pid:
        return pid
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    seen: set[tuple[int, str]] = set()
    watch = Watch(captures=False)

    def note(last: Round) -> None:
        with notes.open("a") as stream:
            if trace is not None:
                record(watch, last, trace)
            for vm in last.vms:
                for what in (*(["suspect"] if vm.suspect or vm.stalled else []), *([vm.stalled] if vm.stalled else [])):
                    if (vm.pid, what) not in seen:
                        seen.add((vm.pid, what))
                        stream.write(json.dumps([time.monotonic(), vm.pid, what]) + "\n")

    try:
        watch.run((note,), lambda seconds: bool(time.sleep(seconds)))
    finally:
        os._exit(0)


@contextmanager
def known_first(*words: Any, **settings: Any) -> Iterator[Machine]:
    """Run a QEMU for a while before anything is done to it."""
    with UNKNOWN(*words, **settings) as vm:
        time.sleep(KNOWN_SECONDS)
        yield vm


def noticed(label: str, only: frozenset[str], notes: Path, trace: Path | None) -> dict[str, tuple[float, str] | None]:
    """Wedge VMs of one QEMU at once; return after how many seconds each was called stalled, and what."""
    began: dict[str, tuple[int, float]] = {}
    with ExitStack() as wedged:
        for name, wedge, _ in WEDGES:
            if name not in only:
                continue
            try:
                stuck = wedged.enter_context(wedge(build(label)))
            except BaseException as error:  # noqa: BLE001 - pytest's own skip, too: this QEMU has none of it
                print(f"  {name}: not wedged: {type(error).__name__}: {str(error)[:100]}")
                continue
            began[name] = (stuck.vm.pid, time.monotonic())
        end = max((at for _, at in began.values()), default=0.0) + PATIENCE
        while time.monotonic() < end:
            time.sleep(1)
            told = [json.loads(line) for line in notes.read_text().splitlines()]
            calls = {pid: (at, what) for at, pid, what in reversed(told) if what != "suspect"}
            if all(pid in calls for pid, _ in began.values()):
                break
    if trace is not None:
        with trace.open("a") as stream:
            stream.write(json.dumps({"build": label, "began": began}) + "\n")
    return {name: (calls[pid][0] - at, calls[pid][1]) if pid in calls else None for name, (pid, at) in began.items()}


def main() -> None:
    """Say for each QEMU how long it took, at the median and at worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", default="7.2,10.0.2,11")
    parser.add_argument("--only", default="", help="wedges, by comma")
    parser.add_argument("--known", action="store_true", help="wedge what the watch has known for a while")
    parser.add_argument("--alone", action="store_true", help="one after the other")
    parser.add_argument("--trace", type=Path, help="a file for all that each round sees")
    given = parser.parse_args()
    if given.known:
        lab.qemu = known_first
    with tempfile.TemporaryDirectory(prefix="at-", dir="/var/tmp") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder  # a QEMU of another system sees what is mounted there
        notes = Path(folder) / "notes"
        notes.touch()
        watcher = watch_process(notes, given.trace)
        try:
            for label in given.builds.split(","):
                names = [name for name, _, _ in WEDGES if name in (given.only or name).split(",")]
                together = [frozenset({name}) for name in names] if given.alone else [frozenset(names)]
                found = {}
                for one in together:
                    found |= noticed(label, one, notes, given.trace)
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
