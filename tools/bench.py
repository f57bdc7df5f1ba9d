"""Measures what a capture costs the VM and the operator, beside `gdb -p` on the same processes in the same run.

Run it with `make bench`. Machines are noisy: the ratios are what counts, each from medians taken in turns.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import bench_ps
import bench_replay
import bench_report
from bench_examine import examinations

from autopsy.bundle.reader import open_bundle
from support import lab

RUNS = 5
IDLE_THREADS = 6  # a QEMU of one vCPU has about as many without any iothread
THREADS = (16, 100, 500)
BUILDS = ("7.2", "10.0.2-debug")


@dataclass(frozen=True, slots=True)
class Cost:
    """One way to look at one VM: seconds in all, ms of the longest stop and of all, MB of peak memory, MB stored."""

    seconds: float
    stop_ms: float = 0.0
    stops_ms: float = 0.0
    peak_mb: float = 0.0
    bundle_mb: float = 0.0
    core_mb: float = 0.0


def stop_of(pid: int, work: Callable[[], object]) -> float:
    """Return for how many ms the main thread of `pid` was seen stopped by a tracer while `work` ran."""
    seen: list[float] = []
    done = threading.Event()

    def sample() -> None:
        with open(f"/proc/{pid}/task/{pid}/stat", "rb", buffering=0) as stream:
            last = time.perf_counter()
            while not done.is_set():
                state = os.pread(stream.fileno(), 128, 0).rpartition(b")")[2][1:2]
                now = time.perf_counter()
                if state in b"tT":
                    seen.append(now - last)
                last = now
                time.sleep(0.0002)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    work()
    done.set()
    sampler.join()
    return sum(seen) * 1e3


def with_gdb(pid: int) -> Cost:
    """Do what an operator without autopsy would do."""
    began = time.perf_counter()
    subprocess.run(
        ["gdb", "-nx", "-p", str(pid), "-batch", "-ex", "thread apply all bt"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    return Cost(time.perf_counter() - began)


def with_autopsy(pid: int) -> Cost:
    """Capture the same VM with --fast, everything included."""
    with tempfile.TemporaryDirectory(prefix="bench-") as out, open(Path(out, "answer"), "w+b") as answers:
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", out],
            stdout=answers,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)  # the largest of its processes, gdb and drgn included
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"the capture ended with {child.returncode}")
        bundle = Path(json.loads(Path(out, "answer").read_bytes())["bundle"])
        opened = open_bundle(bundle)
        stops = [step.stop_ns / 1e6 for step in opened.manifest.steps if step.stop_ns]
        core = next(file.size for file in opened.manifest.files if file.path == "core")
        stop, stored = max(stops, default=0.0), bundle.stat().st_size / 1e6
        return Cost(seconds, stop, sum(stops), usage.ru_maxrss / 1024, stored, core / 1e6)


def median(costs: list[Cost], field: str) -> float:
    """Return the median of one figure."""
    return statistics.median(getattr(cost, field) for cost in costs)


def captures() -> None:
    """Print one row for each size and build."""
    print(
        f"medians of {RUNS}; stop: ms that the VM stood still at one time (in brackets: both snapshots together);\n"
        "seen, and gdb's stop: by a stopwatch outside, which looks at the main thread every 0.2 ms; what is timed is\n"
        "not watched, for that takes a good part of a CPU"
    )
    print(
        f"{'VM':<18} {'gdb: stop':>9} {'total s':>7}   {'autopsy: stop':>16} {'seen':>5} {'total s':>7}   "
        f"{'stop':>6} {'total':>5}  {'peak MB':>7} {'core MB':>7} {'bundle MB':>9}"
    )
    for label in BUILDS:
        build = lab.build(label)
        if not build.present:
            print(f"{label}: not here ({build.why_missing})")
            continue
        for threads in THREADS:
            arguments = [
                word for number in range(threads - IDLE_THREADS) for word in ("-object", f"iothread,id=io{number}")
            ]
            with lab.qemu(build, *arguments) as machine:
                time.sleep(1)
                count = len(list(Path(f"/proc/{machine.pid}/task").iterdir()))
                with_autopsy(machine.pid)  # one warm-up each: page cache, gdb's index
                with_gdb(machine.pid)
                ours, theirs, seen, gdb_stops = [], [], [], []
                for _ in range(RUNS):
                    ours.append(with_autopsy(machine.pid))
                    theirs.append(with_gdb(machine.pid))
                    seen.append(stop_of(machine.pid, lambda pid=machine.pid: with_autopsy(pid)))
                    gdb_stops.append(stop_of(machine.pid, lambda pid=machine.pid: with_gdb(pid)))
                stop, gdb_stop = median(ours, "stop_ms"), statistics.median(gdb_stops)
                seconds, gdb_seconds = median(ours, "seconds"), median(theirs, "seconds")
                both = f"{stop:.2f} ({median(ours, 'stops_ms'):.2f})"
                print(
                    f"{label + ' ' + str(count):<18} {gdb_stop:>9.0f} {gdb_seconds:>7.2f}   {both:>16} "
                    f"{statistics.median(seen):>5.2f} {seconds:>7.2f}   "
                    f"{'1/' + str(round(gdb_stop / stop)) if stop else 'none':>6} {seconds / gdb_seconds:>5.2f}  "
                    f"{median(ours, 'peak_mb'):>7.0f} {median(ours, 'core_mb'):>7.0f} "
                    f"{median(ours, 'bundle_mb'):>9.2f}",
                    flush=True,
                )


def round_trips() -> None:
    """Print what another monitor feels while a VM of 100 threads is captured."""
    build = lab.build("7.2")
    arguments = [word for number in range(100 - IDLE_THREADS) for word in ("-object", f"iothread,id=io{number}")]
    with lab.folder() as folder:
        path = folder / "second.qmp"
        with lab.qemu(build, *arguments, "-qmp", f"unix:{path},server=on,wait=off") as machine:
            idle = worst_round_trip(path, lambda: time.sleep(3))
            during = [worst_round_trip(path, lambda: with_autopsy(machine.pid)) for _ in range(RUNS)]
    print(
        f"worst QMP round trip from another monitor, 100 threads: idle {idle:.1f} ms, during a capture "
        f"{statistics.median(during):.1f} ms (median of {RUNS} captures; the worst of all {max(during):.1f} ms)"
    )


def worst_round_trip(path: Path, work: Callable[[], object]) -> float:
    """Return the slowest of many query-status answers while `work` runs, in ms, over one connection that stays."""
    worst = 0.0
    done = threading.Event()

    def ask(stream: IO[bytes]) -> None:
        nonlocal worst
        while not done.is_set():
            began = time.perf_counter()
            command(stream, "query-status")
            worst = max(worst, (time.perf_counter() - began) * 1e3)
            time.sleep(0.003)

    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(str(path))
        with monitor.makefile("rwb", buffering=0) as stream:
            stream.readline()
            command(stream, "qmp_capabilities")
            asker = threading.Thread(target=ask, args=(stream,))
            asker.start()
            try:
                work()
            finally:
                done.set()
                asker.join()
    return worst


def command(stream: IO[bytes], name: str) -> None:
    stream.write(b'{"execute": "%s"}\n' % name.encode())
    while b'"return"' not in (line := stream.readline()):  # events come between
        assert line, "QEMU has hung up"


def help_time() -> None:
    """Print how long `autopsy --help` takes."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "autopsy", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    print(f"autopsy --help: {statistics.median(times):.3f} s")


if __name__ == "__main__":
    help_time()
    print(bench_replay.measure())
    print(bench_report.measure())
    bench_ps.listing()
    captures()
    round_trips()
    examinations()
