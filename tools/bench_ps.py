"""Measures `autopsy ps` at 1, 10 and 50 VMs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

from support import lab

COUNTS = (1, 10, 50)
RUNS = 5


def listing() -> None:
    """Print one row for each number of VMs."""
    print(f"autopsy ps: s of the whole command, medians of {RUNS}")
    print(f"{'VMs':>5} {'ps':>6}")
    stock = lab.build("7.2")
    with ExitStack() as machines:
        pids: list[int] = []
        for count in COUNTS:
            while len(pids) < count:
                pids.append(machines.enter_context(lab.qemu(stock, name=f"ps{len(pids)}", memory=32)).pid)
            seconds = statistics.median(one_listing(pids) for _ in range(RUNS))
            print(f"{count:>5} {seconds:>6.2f}", flush=True)


def one_listing(pids: list[int]) -> float:
    """Return how long one `autopsy ps` takes, which lists them all."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "autopsy", "ps", "--json"], capture_output=True, check=True)
    seconds = time.perf_counter() - began
    listed = {vm["pid"] for vm in json.loads(done.stdout)}
    if missing := set(pids) - listed:
        raise SystemExit(f"not listed: {missing}")
    uncounted = [vm["pid"] for vm in json.loads(done.stdout) if vm["pid"] in pids and vm["parked_requests"] is None]
    if uncounted:  # other VMs of this host may be in the middle of anything
        raise SystemExit(f"parked requests not counted: {uncounted}")
    return seconds


if __name__ == "__main__":
    listing()
