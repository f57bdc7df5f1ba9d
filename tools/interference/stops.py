"""Measures from outside for how long a capture stops the threads of a VM: of idle ones, busy ones, wedged ones.

python tools/interference/stops.py [--kinds idle,spins,writes,throttled,frozen] [--threads 16,100,500] [--captures 5]
    [--no-bpf]

The stopwatch is a program of its own, ahead of all others, that looks ten thousand times a second at the state of the
main thread, of each vCPU and of some others in /proc. Told is the worst of them, once for each capture; beside it what
the capture itself tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

from autopsy.drill.guests import WRITE_FOR_EVER
from autopsy.drill.machine import Machine
from support import lab
from support.wedged.small_guests import ENOUGH, boot_sector

WATCH = """
import os, sys, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
files = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
stopped = [0.0] * len(files)
seen = [False] * len(files)
last = time.perf_counter()
print("ready", flush=True)
while os.getppid() != 1 and not os.path.exists(os.environ["STOPWATCH_ENDS"]):
    for _ in range(2000):
        states = [os.pread(file, 96, 0).rpartition(b")")[2][1:2] in b"tT" for file in files]
        now = time.perf_counter()
        for place, stops in enumerate(states):
            if stops or seen[place]:
                stopped[place] += (now - last) / (1 if stops and seen[place] else 2)
        seen, last = states, now
        time.sleep(0.0001)
        if os.path.exists(os.environ["STOPWATCH_ENDS"]):
            break
print(max(stopped) * 1000, flush=True)
"""
SPIN = b"\\xfa\\xeb\\xfe"  # cli; jmp here
GDB = ("gdb", "-nx", "-batch", "-ex", "thread apply all bt", "-p")
OTHERS = 8  # threads beside the main thread and the vCPUs
OWN = 6  # threads that a QEMU has without any iothread, about
REQUESTS = 16


def iothreads(threads: int) -> list[str]:
    """Return the options that bring a QEMU to so many threads."""
    return [word for number in range(max(0, threads - OWN)) for word in ("-object", f"iothread,id=io{number}")]


@contextmanager
def idle(threads: int) -> Iterator[Machine]:
    """Run a VM that does nothing."""
    with lab.qemu("7.2", *iothreads(threads)) as machine:
        yield machine


@contextmanager
def spins(threads: int) -> Iterator[Machine]:
    """Run a guest that computes, under KVM."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "disk.raw"), SPIN)
        drive = ("-drive", f"file={image},format=raw,if=virtio")
        with lab.qemu("7.2", *drive, *iothreads(threads), accelerate=lab.KVM, boots=True) as machine:
            time.sleep(6)  # its firmware
            yield machine


@contextmanager
def writes(threads: int) -> Iterator[Machine]:
    """Run a guest that writes one sector after the other, under TCG."""
    with lab.folder() as place:
        image = boot_sector(lab.disk(place / "disk.raw"), WRITE_FOR_EVER)
        disk = (
            *("-blockdev", f"driver=file,filename={image},node-name=f0,aio=threads,cache.direct=on"),
            *("-device", "virtio-blk-pci,id=vd0,drive=f0"),
        )
        with lab.qemu("7.2", *disk, *iothreads(threads), boots=True) as machine:
            lab.until("the guest writes", lambda: lab.writes_done(machine, "vd0") > ENOUGH, seconds=120)
            yield machine


@contextmanager
def throttled(threads: int) -> Iterator[Machine]:
    """Run a VM whose requests wait behind a limit of one byte a second."""
    with lab.folder() as place:
        drive = f"file={lab.disk(place / 'd.raw')},format=raw,if=none,id=d0,throttling.bps-total=1"
        arguments = ("-drive", drive, "-device", "virtio-blk-pci,drive=d0")
        with lab.qemu("7.2", *arguments, *iothreads(threads)) as machine:
            for number in range(REQUESTS):
                machine.qemu_io("d0", f"aio_write {number * 4}k 4k")
            yield machine


@contextmanager
def frozen(threads: int) -> Iterator[Machine]:
    """Run a VM whose workers sleep in state D, below a frozen file system."""
    with ExitStack() as stack:
        mounted = stack.enter_context(lab.file_system())
        drive = f"file={lab.disk(mounted.mount / 'd.raw')},format=raw,if=none,id=d0,cache=none,aio=threads"
        arguments = ("-drive", drive, "-device", "virtio-blk-pci,drive=d0")
        machine = stack.enter_context(lab.qemu("7.2", *arguments, *iothreads(threads)))
        stack.enter_context(lab.frozen(mounted))
        for number in range(REQUESTS):
            machine.qemu_io("d0", f"aio_write {number * 4}k 4k")
        lab.until("a worker sleeps in D", lambda: lab.any_thread_in(machine.pid, "D"))
        yield machine


KINDS: dict[str, Callable[[int], AbstractContextManager[Machine]]] = {
    kind.__name__: kind for kind in (idle, spins, writes, throttled, frozen)
}


def looked_at(pid: int) -> list[str]:
    """Return the states of the main thread, the vCPUs, those in D, and some others, as files of /proc."""
    tasks = {path.name: (path / "stat").read_text().rpartition(")") for path in Path(f"/proc/{pid}/task").iterdir()}
    first = [tid for tid, (comm, _, _) in tasks.items() if tid == str(pid) or "(CPU " in comm]
    asleep = [tid for tid, (_, _, rest) in tasks.items() if rest.split()[0] == "D"]
    others = [tid for tid in tasks if tid not in {*first, *asleep}]
    chosen = [*first, *asleep[:OTHERS], *others[:: max(1, len(others) // OTHERS)][:OTHERS]]
    return [f"/proc/{pid}/task/{tid}/stat" for tid in chosen]


def seen_during(pid: int, out: Path, command: list[str]) -> tuple[float, bytes]:
    """Run a command; return the ms for which the stopwatch saw the worst thread stopped, and what the command said."""
    ends = out / "ends"
    watch = subprocess.Popen(
        [sys.executable, "-c", WATCH, *looked_at(pid)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "STOPWATCH_ENDS": str(ends)},
    )
    assert watch.stdout is not None
    watch.stdout.readline()
    said = subprocess.run(command, check=True, capture_output=True).stdout
    ends.touch()
    seen = float(watch.stdout.readline())
    watch.wait()
    ends.unlink()
    return seen, said


def captured(pid: int, out: Path, *options: str) -> tuple[float, float, str]:
    """Capture once; return the ms that the stopwatch saw and those that the capture tells, and what the freeze says."""
    command = [sys.executable, "-m", "autopsy", "capture", f"pid:{pid}", "--fast", "--json", "--out", str(out)]
    command += options
    seen, said = seen_during(pid, out, command)
    answer = json.loads(said)
    return seen, float(answer["stop_ms"]), next(step["why"] for step in answer["steps"] if step["name"] == "freeze")


def main() -> None:
    """Print a line for each kind and size."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--kinds", default=",".join(KINDS))
    words.add_argument("--threads", default="16,100,500,2000")
    words.add_argument("--captures", type=int, default=5)
    words.add_argument("--no-bpf", action="store_true", help="stop all threads, as where none can be walked")
    asked = words.parse_args()
    options = ["--no-bpf"] if asked.no_bpf else []
    print("ms; gdb: the same stopwatch beside `gdb -p`, once; load; what the last capture told")
    print(f"{'VM':<10} {'threads':>7}  {'seen: median':>12} {'worst':>6}  {'told: median':>12} {'worst':>6} {'gdb':>6}")
    for kind in asked.kinds.split(","):
        for threads in map(int, asked.threads.split(",")):
            with KINDS[kind](threads) as machine, tempfile.TemporaryDirectory(prefix="stops-") as out:
                time.sleep(1)
                count = len(list(Path(f"/proc/{machine.pid}/task").iterdir()))
                rounds = [captured(machine.pid, Path(out), *options) for _ in range(asked.captures)]
                gdb = ""
                if kind != frozen.__name__:  # it would wait for a thread in state D for ever, and the VM with it
                    gdb = f"{seen_during(machine.pid, Path(out), [*GDB, str(machine.pid)])[0]:.0f}"
            seen, told = [each[0] for each in rounds], [each[1] for each in rounds]
            load = os.getloadavg()[0]
            print(
                f"{kind:<10} {count:>7}  {statistics.median(seen):>12.2f} {max(seen):>6.2f}  "
                f"{statistics.median(told):>12.2f} {max(told):>6.2f} {gdb:>6}  {load:.0f}  {rounds[-1][2]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
