"""What the watch costs: processor time and memory over many idle VMs, and the latency of a guest's writes beside it.

With --simulated so many VMs are made of recorded samples, which tells what judging costs as their number grows.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from soak import children_of, resident

from autopsy.drill import guests, storage
from autopsy.drill.machine import Machine, of_device
from autopsy.watch.coroutine_look import CoroutineLook, ParkedCoroutine
from autopsy.watch.judge import VmJudge
from autopsy.watch.request_shape import Shape
from autopsy.watch.sample import VmSample
from support import lab

IOTHREADS = 15  # beside the main loop, its helpers, the vCPU and pool workers: about 20 threads
WRITES = 400
TICKS = os.sysconf("SC_CLK_TCK")


def many(stack: ExitStack, number: int) -> list[Machine]:
    """Start idle VMs of about twenty threads each."""
    iothreads = [word for each in range(IOTHREADS) for word in ("-object", f"iothread,id=io{each}")]
    return [stack.enter_context(lab.qemu("7.2", *iothreads, name=f"bench{each}", memory=16)) for each in range(number)]


def seconds_of(pid: int) -> float:
    """Return the processor time of a process and of those that it has started."""
    total = 0
    for each in (pid, *children_of(pid)):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def latencies(vm: Machine) -> list[float]:
    """Write one block after the other, and return what each took in ms, with the monitor's part of it."""
    found = []
    for place in range(WRITES):
        began = time.perf_counter()
        vm.qemu_io(of_device("vd0"), f"write {place % 60}M 4k", within=60)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def measure(number: int, seconds: float, pairs: int) -> None:
    """Watch so many VMs for a while, then compare writes with and without the watch, in turn."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-watch-") as scratch:
        image = storage.disk(Path(scratch) / "d")
        guests.write_boot_sector(image)
        node = ("-blockdev", f"driver=file,node-name=n0,filename={image}", "-device", "virtio-blk-pci,id=vd0,drive=n0")
        writer = stack.enter_context(lab.qemu("7.2", *node, name="writer"))
        vms = many(stack, number - 1)
        threads = sum(len(os.listdir(f"/proc/{vm.pid}/task")) for vm in (*vms, writer))
        only = [word for vm in (*vms, writer) for word in ("--only", str(vm.pid))]
        words = [sys.executable, "-m", "autopsy", "watch", "--no-capture", *only]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as watch:
            try:
                time.sleep(15)
                before, began = seconds_of(watch.pid), time.monotonic()
                most = 0.0
                while time.monotonic() - began < seconds:
                    time.sleep(5)
                    most = max(most, sum(map(resident, (watch.pid, *children_of(watch.pid)))))
                share = (seconds_of(watch.pid) - before) / (time.monotonic() - began) * 100
                print(f"{number} VMs, {threads} threads: {share:.2f} % of one processor, {most:.0f} MB at most")
                ratios = []
                for _ in range(pairs):
                    beside = latencies(writer)
                    os.kill(watch.pid, signal.SIGSTOP)
                    alone = latencies(writer)
                    os.kill(watch.pid, signal.SIGCONT)
                    p99 = [statistics.quantiles(each, n=100)[98] for each in (beside, alone)]
                    ratios.append(p99[0] / p99[1])
                    print(f"p99 of a write: {p99[0]:.2f} ms beside the watch, {p99[1]:.2f} ms without")
                print(f"median ratio {statistics.median(ratios):.3f} of {pairs} pairs, load {os.getloadavg()[0]:.0f}")
            finally:
                watch.terminate()


def simulate(number: int) -> float:
    """Judge so many VMs for a minute's samples, and return the processor's ms that one VM and sample took."""
    parked = tuple(ParkedCoroutine(top, bytes([top]), Shape.TRACKED, top % 3) for top in range(8))
    judges = [VmJudge() for _ in range(number)]
    began = time.process_time()
    for second in range(0, 60, 2):
        for judge in judges:
            look = CoroutineLook(clear=True, parked=parked)
            judge.judge(VmSample(at_ns=(second + 9) * 10**9, size=1, threads=20, ran=3, look=look))
    spent = (time.process_time() - began) * 1e3
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{number} simulated VMs: {spent / 30:.1f} ms a round, {spent / 30 / number * 1e3:.0f} µs a VM, {mb:.0f} MB")
    return spent / 30 / number


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--simulated", type=int, default=0)
    given = parser.parse_args()
    if given.simulated:
        for number in (given.simulated // 10, given.simulated // 2, given.simulated):
            simulate(number)
    else:
        measure(given.vms, given.seconds, given.pairs)


if __name__ == "__main__":
    main()
