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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from soak import children_of, resident

from autopsy.drill import guests, storage
from autopsy.drill.machine import Machine
from autopsy.watch.coroutine_look import CoroutineLook, ParkedCoroutine
from autopsy.watch.judge import VmJudge
from autopsy.watch.request_shape import Shape
from autopsy.watch.sample import VmSample
from support import lab

IOTHREADS = 15  # beside the main loop, its helpers, the vCPU and pool workers: about 20 threads
WRITES = 100  # before anything is counted
PERIOD_SECONDS = 4.0  # two rounds of the watch, or none
AHEAD = -15  # a nice value: beside other work, they have the host as if it were theirs alone
GROUP = 10  # pairs of periods that are counted together
BOUNDARIES = tuple(dict.fromkeys(int(10_000 * 1.02**step) for step in range(500)))  # 10 µs to 0.2 s, in ns
AT_EACH_TICK = (
    bytes.fromhex(
        "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # as in WRITE_FOR_EVER
        "b034 e643 b84e17 e640 88e0 e640"  # its clock: 200 ticks a second
        "be507c b280 b80043 cd13 721a"  # again: si = packet; dl = first disk; ah = 43h; int 13h; jc not_yet
        "66ff06587c 66a1587c 663d00700000 7209"  # packet.sector += 1; below 28672: jb not_yet
        "66c706587c40000000"  # packet.sector = 64
        "f4 ebd7"  # not_yet: hlt; jmp again
    ).ljust(80, b"\x90")
    + guests.WRITE_FOR_EVER[80:]
)
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


def writing_guest(scratch: Path, stack: ExitStack) -> Machine:
    """Start a guest that writes a sector at each tick of its clock, of which it makes 200 a second."""
    image = storage.disk(scratch / "d")
    with image.open("r+b") as stream:
        stream.write(AT_EACH_TICK.ljust(510, b"\0") + b"\x55\xaa")
    node = ("-blockdev", f"driver=file,node-name=n0,filename={image}", "-device", "virtio-blk-pci,id=vd0,drive=n0")
    vm = stack.enter_context(lab.qemu("7.2", *node, name="writer", boots=True))
    lab.until("the guest writes", lambda: lab.writes_done(vm, "vd0") > WRITES, seconds=120)
    vm.qmp("block-latency-histogram-set", id="/machine/peripheral/vd0/virtio-backend", boundaries=list(BOUNDARIES))
    return vm


def counted(vm: Machine) -> list[int]:
    """Return how many writes took how long, as QEMU itself has counted them."""
    for each in vm.qmp("query-blockstats"):
        if "wr_latency_histogram" in each["stats"]:
            return list(each["stats"]["wr_latency_histogram"]["bins"])
    return []


def writes_of(vm: Machine, seconds: float) -> list[int]:
    """Return how long the guest's writes of so many seconds took."""
    before = counted(vm)
    time.sleep(seconds)
    return [after - early for after, early in zip(counted(vm), before, strict=True)]


def p99(bins: Sequence[int]) -> float:
    """Return the 99th percentile in ms, interpolated within its bin."""
    wanted, seen = sum(bins) * 0.99, 0
    edges = (0, *BOUNDARIES, BOUNDARIES[-1])
    for place, count in enumerate(bins):
        if seen + count >= wanted and count:
            return (edges[place] + (edges[place + 1] - edges[place]) * (wanted - seen) / count) / 1e6
        seen += count
    return 0.0


def compare(writer: Machine, watch: int, pairs: int) -> None:
    """Let the watch go and stand in turn, first the one and then the other, and compare each ten pairs' p99."""
    ratios, whole = [], ([0] * (len(BOUNDARIES) + 1), [0] * (len(BOUNDARIES) + 1))
    for _ in range(pairs // GROUP):
        group = ([0] * (len(BOUNDARIES) + 1), [0] * (len(BOUNDARIES) + 1))
        for number in range(GROUP):
            for alone in ((False, True), (True, False))[number % 2]:
                os.kill(watch, signal.SIGSTOP if alone else signal.SIGCONT)
                for place, count in enumerate(writes_of(writer, PERIOD_SECONDS)):
                    group[alone][place] += count
                    whole[alone][place] += count
        os.kill(watch, signal.SIGCONT)
        ratios.append(p99(group[False]) / p99(group[True]))
        print(
            f"p99 of a write: {p99(group[False]):.3f} ms beside the watch, {p99(group[True]):.3f} ms without",
            flush=True,
        )
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{sum(whole[0])} and {sum(whole[1])} writes: p99 {p99(whole[0]):.3f} and {p99(whole[1]):.3f} ms, ratio "
        f"{p99(whole[0]) / p99(whole[1]):.3f}; of {len(ratios)} tens of pairs {middle:.3f} ({low:.3f} to {high:.3f}); "
        f"load {os.getloadavg()[0]:.0f}"
    )


def put_ahead(pid: int) -> None:
    """Have every thread of a process come before all else that this host does."""
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        os.setpriority(os.PRIO_PROCESS, tid, AHEAD)


def measure(number: int, seconds: float, pairs: int, *, ahead: bool) -> None:
    """Watch so many VMs for a while, then compare writes with and without the watch, in turn."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-watch-") as scratch:
        writer = writing_guest(Path(scratch), stack)
        vms = many(stack, number - 1)
        threads = sum(len(os.listdir(f"/proc/{vm.pid}/task")) for vm in (*vms, writer))
        only = [word for vm in (*vms, writer) for word in ("--only", str(vm.pid))]
        words = [sys.executable, "-m", "autopsy", "watch", "--no-capture", *only]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as watch:
            try:
                time.sleep(15)
                for pid in (writer.pid, watch.pid, *children_of(watch.pid)) if ahead else ():
                    put_ahead(pid)
                before, began = seconds_of(watch.pid), time.monotonic()
                most = 0.0
                while time.monotonic() - began < seconds:
                    time.sleep(5)
                    most = max(most, sum(map(resident, (watch.pid, *children_of(watch.pid)))))
                share = (seconds_of(watch.pid) - before) / (time.monotonic() - began) * 100
                print(
                    f"{number} VMs, {threads} threads: {share:.2f} % of one processor, {most:.0f} MB at most",
                    flush=True,
                )
                compare(writer, watch.pid, pairs)
            finally:
                os.kill(watch.pid, signal.SIGCONT)
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
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--ahead", action="store_true", help="guest and watch come before all else that runs here")
    parser.add_argument("--simulated", type=int, default=0)
    given = parser.parse_args()
    if given.simulated:
        for number in (given.simulated // 10, given.simulated // 2, given.simulated):
            simulate(number)
    else:
        measure(given.vms, given.seconds, given.pairs, ahead=given.ahead)


if __name__ == "__main__":
    main()
