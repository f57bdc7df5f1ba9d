"""Measures what a guest's I/O feels of a capture: p99 beside one, beside none and beside any program of as much CPU.

python tools/interference/latencies.py [--minutes 9] [--accelerate kvm|tcg] [--fast] [--groups] [--through COMMAND]

Under TCG a Linux guest writes, reads back and times without a pause. Where KVM is emulated itself no Linux boots under
it: there a boot sector writes without a pause, and QEMU's own histogram tells how long each write took.

With --groups the VM is in a control group of its own, as a hypervisor's is, the capture in another of the same weight,
and once more in one of least weight. All of it comes before whatever else runs here (control groups of version 1).

With --through a capture is started once more through a command, as "taskset -c 0".

The slices take turns, in an order drawn anew for each round, for what else runs on the machine changes slowly and is
the same for all. Told is the percentile of all that the slices of a kind have seen together, by that of those without
anything beside them, and between what that ratio lies in 90 of 100 draws of as many rounds out of these: it tells
something only as far as it is clear of "nothing again".
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

from soak import cpio

from autopsy.drill.guests import WRITE_FOR_EVER
from autopsy.drill.machine import Machine
from support import lab
from support.wedged.small_guests import ENOUGH, boot_sector

PERIODS = 5  # a second, after each of which the guest tells its latencies
BUCKETS = 96  # as the guest has them: one begins at 2^(bucket/4) us
SPIN = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass"
DRAWS = 400
SCHED_SETATTR = 314  # of x86-64
CPU = Path("/sys/fs/cgroup/cpu")
WEIGHTS = {"vm": 1024, "ordinary": 1024, "least": 15}  # 15 is what a nice value of 19 is worth
FIRST = 262_144  # the greatest weight
REAL_TIME = 60_000  # us a second, of which a capture takes some while it holds a lock
SLICE_NS = 100_000  # shorter than others': who wakes up takes their CPU at once (Linux 6.12)
LEAST = 100  # operations in a slice, of which one is the slowest hundredth


@contextmanager
def boot_sector_guest(place: Path) -> Iterator[Machine]:
    """Boot under KVM what writes one sector after the other."""
    image = boot_sector(lab.disk(place / "disk.raw"), WRITE_FOR_EVER)
    with lab.qemu(
        "7.2",
        *("-blockdev", f"driver=file,filename={image},node-name=f0,aio=threads,cache.direct=on"),
        *("-device", "virtio-blk-pci,id=vd0,drive=f0"),
        accelerate=lab.KVM,
        boots=True,
    ) as machine:
        lab.until("the guest writes", lambda: lab.writes_done(machine, "vd0") > ENOUGH, seconds=120)
        yield machine


@contextmanager
def linux_guest(place: Path) -> Iterator[Machine]:
    """Boot the small Linux guest with one job of direct I/O, which tells of it several times a second."""
    kernel, initrd = lab.guest_files()
    source = (lab.HOUSE / "tests" / "guest/verify.c").read_text()
    (place / "verify.c").write_text(source.replace("sleep(1);", f"usleep({1_000_000 // PERIODS});"))
    program = place / "verify"
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", program, place / "verify.c"], check=True)
    (place / "vmlinuz").symlink_to(kernel)
    (place / "initrd.gz").write_bytes(initrd.read_bytes() + gzip.compress(cpio("bin/iogen", program.read_bytes())))
    os.environ["AUTOPSY_GUEST"] = str(place)
    image = lab.disk(place / "disk.raw", mebibytes=64)
    with lab.guest(
        "7.2",
        *("-blockdev", f"driver=file,filename={image},node-name=f0,aio=threads,cache.direct=on"),
        *("-device", "virtio-blk-pci,id=vd0,drive=f0"),
        load="1,1,4096,w,rand,100000",
    ) as machine:
        lab.until("the guest verifies", lambda: "VERIFY " in lab.console(machine), seconds=60)
        yield machine


@contextmanager
def groups() -> Iterator[Path]:
    """Make the control groups of WEIGHTS, in one that comes before all others; this process is of the ordinary one."""
    whole = CPU / f"latencies-{os.getpid()}"
    made = [whole, *(whole / name for name in WEIGHTS)]
    try:
        for group in made:
            group.mkdir()
            (group / "cpu.rt_runtime_us").write_text(str(REAL_TIME * (len(WEIGHTS) if group == whole else 1)))
            (group / "cpu.shares").write_text(str(WEIGHTS.get(group.name, FIRST)))
        (whole / "ordinary/cgroup.procs").write_text("0")
        attributes = struct.pack("<IIQiIQQQ", 48, os.SCHED_OTHER, 0, 0, 0, SLICE_NS, 0, 0)
        ctypes.CDLL(None).syscall(SCHED_SETATTR, 0, attributes, 0)
        yield whole
    finally:
        (CPU / "cgroup.procs").write_text("0")
        for group in reversed(made):
            lab.until("its last process is gone", lambda group=group: not (group / "cgroup.procs").read_text())
            group.rmdir()


class OfQemu:
    """What QEMU has told since it was last asked."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._begin()

    def _begin(self) -> None:
        edges = [int(2 ** (bucket / 4) * 1000) for bucket in range(1, BUCKETS)]
        device = "/machine/peripheral/vd0/virtio-backend"
        self._machine.qmp("block-latency-histogram-set", id=device, boundaries=edges)

    def take(self) -> Counter[int]:
        """Return the latencies since it was last called, by bucket."""
        (disk,) = [each for each in self._machine.qmp("query-blockstats") if "/vd0/" in each.get("qdev", "")]
        self._begin()
        return Counter(dict(enumerate(disk["stats"]["wr_latency_histogram"]["bins"])))


class OfTheGuest:
    """What the guest has told since it was last asked."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._seen = 0
        self.take()

    def take(self) -> Counter[int]:
        """Return the latencies of the periods that have ended since, by bucket."""
        whole, _, _ = lab.console(self._machine).rpartition("\n")
        lines = [line for line in whole.splitlines() if line.startswith("VERIFY ")]
        new, self._seen = lines[self._seen :], len(lines)
        found: Counter[int] = Counter()
        for line in new:
            found.update({int(bucket): int(many) for bucket, many in (word.split(":") for word in line.split()[4:])})
        return found


def percentile(found: Counter[int], share: float) -> float:
    """Return a percentile in ms; within its bucket, which is a fifth wide, latencies are taken to lie evenly."""
    above = sum(found.values()) * (1 - share)
    for bucket in sorted(found, reverse=True):
        if found[bucket] >= above:
            return float(2 ** ((bucket + 1 - above / found[bucket]) / 4) / 1000)
        above -= found[bucket]
    return 0.0


def slice_of(latencies: OfQemu | OfTheGuest, during: Callable[[], object]) -> Counter[int]:
    """Return the latencies while something goes on: of the periods that begin and end with it, or nearly."""
    time.sleep(1.5 / PERIODS)
    latencies.take()
    during()
    time.sleep(0.5 / PERIODS)
    return latencies.take()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=9)
    words.add_argument("--accelerate", choices=("kvm", "tcg"), default="tcg")
    words.add_argument("--fast", action="store_true")
    words.add_argument("--groups", action="store_true")
    words.add_argument("--through", type=str.split, default=[], metavar="COMMAND")
    asked = words.parse_args()
    guest, told_by = (linux_guest, OfTheGuest) if asked.accelerate == "tcg" else (boot_sector_guest, OfQemu)
    with ExitStack() as stack:
        place, whole = stack.enter_context(lab.folder()), stack.enter_context(groups()) if asked.groups else None
        machine, out = stack.enter_context(guest(place)), stack.enter_context(tempfile.TemporaryDirectory())
        if whole is not None:
            (whole / "vm/cgroup.procs").write_text(str(machine.pid))
        capture = [sys.executable, "-m", "autopsy", "capture", f"pid:{machine.pid}", "--out", out]
        capture += ["--fast"] if asked.fast else []
        took, cpu = 2.0, 2.0

        def captures(group: Path | None = None, through: Sequence[str] = ()) -> None:
            nonlocal took, cpu
            began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            into = ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(group / "cgroup.procs")] if group else []
            subprocess.run([*into, *through, *capture], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = time.monotonic() - began
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        kinds: dict[str, Callable[[], object]] = {
            "nothing": lambda: time.sleep(took),
            "capture": captures,
            "any program": lambda: subprocess.run([sys.executable, "-c", SPIN, str(cpu)], check=True),
            "nothing again": lambda: time.sleep(took),
        }
        if whole is not None:
            kinds["of least weight"] = lambda: captures(whole / "least")
        if asked.through:
            kinds[asked.through[0]] = lambda: captures(through=asked.through)
        captures()
        latencies = told_by(machine)
        rounds: list[dict[str, Counter[int]]] = []
        ends = time.monotonic() + 60 * asked.minutes
        while time.monotonic() < ends:
            slices = {kind: slice_of(latencies, kinds[kind]) for kind in random.sample(list(kinds), len(kinds))}
            if min(sum(found.values()) for found in slices.values()) >= LEAST:
                rounds.append(slices)
        told = f"{len(rounds)} rounds, {asked.accelerate}, load {os.getloadavg()[0]:.1f}"
        print(f"{told}; a capture {'--fast ' if asked.fast else ''}took {cpu:.1f} s of CPU in {took:.1f} s")
        print(
            f"{'beside':<16} {'writes':>8} {'p50 ms':>7} {'p99 ms':>7}  p50 by that of nothing  p99 by that of nothing"
        )
        for kind in kinds:
            whole = pooled(rounds, kind)
            shares = "  ".join(f"{ratio(rounds, kind, share):<22}" for share in (0.5, 0.99))
            times = " ".join(f"{percentile(whole, share):>7.2f}" for share in (0.5, 0.99))
            print(f"{kind:<16} {sum(whole.values()):>8} {times}  {shares}")


def pooled(rounds: Sequence[dict[str, Counter[int]]], kind: str) -> Counter[int]:
    """Return the latencies of all slices of a kind together."""
    whole: Counter[int] = Counter()
    for slices in rounds:
        whole.update(slices[kind])
    return whole


def ratio(rounds: Sequence[dict[str, Counter[int]]], kind: str, share: float) -> str:
    """Return a percentile by that without anything beside it, and where it lies in most draws of as many rounds."""

    def of(drawn: Sequence[dict[str, Counter[int]]]) -> float:
        return percentile(pooled(drawn, kind), share) / percentile(pooled(drawn, "nothing"), share)

    draws = sorted(of(random.choices(rounds, k=len(rounds))) for _ in range(DRAWS))  # noqa: S311 - statistics
    return f"{of(rounds):.3f} ({draws[DRAWS // 20]:.3f}-{draws[-DRAWS // 20]:.3f})"


if __name__ == "__main__":
    main()
