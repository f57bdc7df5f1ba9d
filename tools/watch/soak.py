"""Watches healthy VMs for hours, and counts what the watch says of them that is not so; `make soak-watch`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
from vms import ACTIVITIES, SoakVm, live

from autopsy.commands.watch import watch_on
from autopsy.watch.config import WatchConfig
from autopsy.watch.model import Round
from support.builds import build

TOLD_EVERY = 300.0
ENDING_SECONDS = 60.0
NAMES = frozenset(act.__name__ for act in ACTIVITIES)


class WatchNotes:
    """What the watching process writes down: each suspicion and stall, and what it costs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state: dict[int, tuple[str, str]] = {}
        self.vm_seconds = 0.0
        self.states: Counter[str] = Counter()
        self.last = time.monotonic()
        self.began = time.monotonic()
        self.told = 0.0

    def note(self, last: Round) -> None:
        """Write a line for each VM that has become suspect or stalled, or has ceased to be, and the cost."""
        now = time.monotonic()
        ours = [vm for vm in last.vms if vm.name in NAMES]  # others may wedge theirs on this host
        self.vm_seconds += len(ours) * (now - self.last)
        for vm in ours:
            self.states[vm.state.value] += 1
        self.last = now
        for vm in ours:
            what = vm.stalled.value if vm.stalled else "suspect" if vm.suspect else ""
            before = self.state.get(vm.pid, ("", ""))
            if (what, vm.state.value) != before:
                self.state[vm.pid] = (what, vm.state.value)
                if what or before[0]:
                    self.write(kind="sign", **msgspec.to_builtins(vm), was=before[0])
                    self.keep_ring(vm.pid, vm.start_ticks)
        if now - self.told > 30 or not self.told:
            self.told = now
            mine, children = resource.getrusage(resource.RUSAGE_SELF), children_seconds()
            self.write(
                kind="cost",
                seconds=now - self.began,
                vm_hours=self.vm_seconds / 3600,
                vms=len(ours),
                states=dict(self.states),
                others=len(last.vms) - len(ours),
                cpu=mine.ru_utime + mine.ru_stime + children,
                rss_mb=resident(os.getpid()) + sum(map(resident, children_of(os.getpid()))),
                late=last.samples_late,
                sample_ms=last.sample_seconds * 1e3,
            )

    def keep_ring(self, pid: int, start_ticks: int) -> None:
        """Keep the ring of what was told, to see why."""
        source = Path(f"/run/autopsy/watch/{pid}-{start_ticks}.jsonl")
        if source.exists():
            (self.place / f"{time.time():.0f}-{source.name}").write_bytes(source.read_bytes())

    def write(self, **what: object) -> None:
        """Write one line."""
        with (self.place / "notes.jsonl").open("a") as stream:
            stream.write(json.dumps({"at": time.time(), **what}) + "\n")


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def children_seconds() -> float:
    """Return the processor time of our children, those that have ended and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for pid in children_of(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def resident(pid: int) -> float:
    """Return what of a process is in memory and its alone, in MB (10^6)."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1024 / 1e6


def watch_process(place: Path) -> int:
    """Fork the watch, before this process has any thread."""
    pid = os.fork()
    if pid == 0:
        notes = WatchNotes(place)
        try:
            watch_on(WatchConfig(), (notes.note,), captures=False, say=lambda line: notes.write(kind="said", line=line))
        finally:
            os._exit(0)
    return pid


def table(place: Path, vms: list[SoakVm]) -> str:
    """Return what came of it so far."""
    rows = [json.loads(line) for line in (place / "notes.jsonl").read_text().splitlines()]
    cost = [row for row in rows if row["kind"] == "cost"]
    ours = {pid: vm.activity for vm in vms for pid in vm.pids}
    signs = [row for row in rows if row["kind"] == "sign"]
    alarms = Counter((row["name"], row["stalled"]) for row in signs if row["stalled"] and row["was"] != row["stalled"])
    suspicions = Counter(row["name"] for row in signs if row["suspect"] and row["was"] != "suspect")
    last = cost[-1] if cost else {}
    lines = [
        f"{last.get('vm_hours', 0):.1f} VM hours in {last.get('seconds', 0) / 3600:.2f} h, {len(ours)} VMs now",
        f"false alarms: {dict(alarms) or 'none'}",
        f"suspicions that came to nothing: {dict(suspicions) or 'none'}",
    ]
    if last:
        said = sum(last["states"].values())
        shares = (f"{state} {count / said:.1%}" for state, count in sorted(last["states"].items()))
        lines.append(f"what it could say: {', '.join(shares)}")
        share = last["cpu"] / max(last["seconds"], 1) * 100
        lines.append(
            f"the watch: {share:.2f} % of a processor, {max(row['rss_mb'] for row in cost):.0f} MB at most, "
            f"{last['late']} late rounds"
        )
    lines += [
        f"  {vm.activity} ({vm.build.label}): {vm.rounds} rounds{f', {vm.trouble}' if vm.trouble else ''}" for vm in vms
    ]
    return "\n".join(lines)


def main() -> None:
    """Watch VMs for so long, and tell what was said of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--builds", default="7.2,10.0.2,11")
    parser.add_argument("--only", default="", help="activities, by comma")
    parser.add_argument("--notes", type=Path, default=Path("build/soak-watch"))
    given = parser.parse_args()
    given.notes.mkdir(parents=True, exist_ok=True)
    (given.notes / "notes.jsonl").touch()
    watcher = watch_process(given.notes.resolve())
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    labels = given.builds.split(",")
    chosen = [each for each in ACTIVITIES if not given.only or each.__name__ in given.only.split(",")]
    vms = [SoakVm(act.__name__, build(labels[number % len(labels)]), over) for number, act in enumerate(chosen)]
    threads = [threading.Thread(target=live, args=pair) for pair in zip(vms, chosen, strict=True)]
    for thread in threads:
        thread.start()
        time.sleep(1)
    end = time.monotonic() + given.minutes * 60
    try:
        while time.monotonic() < end and not over.is_set():
            over.wait(min(TOLD_EVERY, max(0.0, end - time.monotonic())))
            print(f"{table(given.notes, vms)}\n", flush=True)
    finally:
        over.set()
        os.kill(watcher, signal.SIGTERM)
        os.waitpid(watcher, 0)
        for thread in threads:
            thread.join(ENDING_SECONDS)
        print(table(given.notes, vms), flush=True)


if __name__ == "__main__":
    main()
