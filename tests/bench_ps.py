"""Measures `autopsy ps` at 1, 10 and 50 VMs, and what a count of parked requests would add to it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import lab

COUNTS = (1, 10, 50)
RUNS = 5


def listing() -> None:
    """Print one row for each number of VMs."""
    print(f"autopsy ps: s of the whole command, medians of {RUNS}; read: ms to read one VM's heap, which a count of")
    print("parked requests would take for each of them (and a scan of it besides)")
    print(f"{'VMs':>5} {'ps':>6} {'read':>6} {'heap MB':>8}")
    stock = lab.build("7.2")
    with ExitStack() as machines:
        pids: list[int] = []
        for count in COUNTS:
            while len(pids) < count:
                pids.append(machines.enter_context(lab.qemu(stock, name=f"ps{len(pids)}", memory=32)).pid)
            seconds = statistics.median(one_listing(pids) for _ in range(RUNS))
            heap_read(pids[0])  # its page tables are walked for the first time
            megabytes, milliseconds = heap_read(pids[0])
            print(f"{count:>5} {seconds:>6.2f} {milliseconds:>6.0f} {megabytes:>8.1f}", flush=True)


def one_listing(pids: list[int]) -> float:
    """Return how long one `autopsy ps` takes, which lists them all."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "autopsy", "ps", "--json"], capture_output=True, check=True)
    seconds = time.perf_counter() - began
    listed = {vm["pid"] for vm in json.loads(done.stdout)}
    if missing := set(pids) - listed:
        raise SystemExit(f"not listed: {missing}")
    return seconds


def heap_read(pid: int) -> tuple[float, float]:
    """Return the MB of a VM's private writable memory but for the guest's RAM, and the ms that reading it takes."""
    regions = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        start, end = (int(each, 16) for each in fields[0].split("-"))
        if fields[1].startswith("rw") and len(fields) < 7 and end - start < 32 << 20:
            regions.append((start, end - start))
    size = 0
    began = time.perf_counter()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, length in regions:
            try:
                size += len(os.pread(memory.fileno(), length, start))
            except OSError:
                continue
    return size / 1e6, (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    listing()
