"""Measures what each part of an examination costs: CPU time, which other work on the machine does not blur, and memory.

Part of `make bench`; by itself: `python tools/bench_examine.py`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from autopsy.examine import run
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.reader import Core
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.coroutines import find
from autopsy.examine.gdb import unwind
from autopsy.examine.gdb.printed import EarlyGdb
from autopsy.examine.gdb.unwind import Parked
from autopsy.examine.heap import run as heap
from autopsy.examine.states import tasks
from autopsy.examine.threads import aio_rings, aio_workers, lock_owners, main_loop, poll_sets
from autopsy.examine.view import View
from support import lab, snapshot

BUILDS = ("7.2", "10.0.2-debug")
IDLE_THREADS = 6
THREADS = (16, 100, 500)
PARKED = 1000
WITHIN = 60.0
KIB = 1024


class Cost(msgspec.Struct, frozen=True):
    """One part: seconds of CPU, gdb's and drgn's included, and those that passed; MB at its peak, ours and theirs."""

    cpu: float
    wall: float
    ours_mb: float
    theirs_mb: float


class Scene:
    """One frozen VM, opened as `run.examine` opens it."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        self.core = Core(self.frozen.core)
        self.symbols = Symbols(self.core, self.frozen)
        self.saved = find.find_coroutines(self.core, self.symbols)
        self.parked = [Parked(self.core, each) for each in self.saved if each.coroutine.state == "parked"]
        self.view = View(
            frozen=self.frozen,
            core=self.core,
            second=None,
            symbols=self.symbols,
            threads=(),
            saved=self.saved,
            ends_at=time.monotonic() + WITHIN,
        )

    def unwind(self) -> None:
        comms = {tid: task.comm for tid, task in tasks(self.frozen.read).items()}
        with EarlyGdb(self.frozen.scratch, without="") as early:
            unwound = unwind.unwind(
                self.core,
                self.symbols,
                self.parked,
                comms=comms,
                scratch=self.frozen.scratch,
                ends_at=time.monotonic() + WITHIN,
                early=early,
            )
        assert len(unwound.coroutines) == len(self.parked)

    def unwind_each_by_itself(self) -> None:
        """Unwind as if no two coroutines were alike: the worst that a heap can hold."""
        number = count()
        unwind._signature = lambda _symbols, _parked: (next(number),)
        self.unwind()

    def parts(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield each part of an examination by name."""
        graph = lock_owners.of(self.view)
        view = replace(self.view, graph=graph)
        yield "open", lambda: Symbols(Core(self.frozen.core), self.frozen).main
        yield "coroutines", lambda: find.find_coroutines(self.core, self.symbols)
        yield "gdb", self.unwind
        if len(self.parked) >= PARKED:
            yield "gdb, none alike", self.unwind_each_by_itself
        yield "locks", lambda: lock_owners.of(self.view)
        yield "main loop", lambda: main_loop.examine_main_loop(view)
        yield "rings", lambda: aio_rings.examine_aio_rings(view)
        yield "workers, eventfds", lambda: (aio_workers.examine_aio_workers(view), poll_sets.examine_poll_sets(view))
        yield "heap", lambda: heap.finish(heap.start(self.frozen, self.symbols, WITHIN))
        yield "all", lambda: run.examine_core(self.frozen)


def cost_of(part: Callable[[], object]) -> Cost:
    """Run one part in a process of its own and return what it took."""
    ends, begins = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(begins, msgspec.json.encode(_measured(part)))
            code = 0
        finally:
            os._exit(code)
    os.close(begins)
    with open(ends, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("a part of the examination failed")
    return msgspec.json.decode(told, type=Cost)


def _measured(part: Callable[[], object]) -> Cost:
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = _status("VmRSS")
    began, used = time.perf_counter(), _used()
    part()
    return Cost(
        wall=time.perf_counter() - began,
        cpu=_used() - used,
        ours_mb=max(0, _status("VmHWM") - before) / KIB,
        theirs_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / KIB,
    )


def _used() -> float:
    """Return the CPU time of ours and of the programs that we have waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@contextmanager
def wedged(label: str, *, threads: int, requests: int) -> Iterator[snapshot.Exposed]:
    """Freeze a VM of so many threads with so many requests behind a throttle timer."""
    with lab.folder() as place:
        iothreads = (
            word for number in range(threads - IDLE_THREADS) for word in ("-object", f"iothread,id=io{number}")
        )
        drive = f"file={lab.disk(place / 'd.raw')},format=raw,if=none,id=d0,throttling.bps-total=1"
        with lab.qemu(label, *iothreads, "-drive", drive, "-device", "virtio-blk-pci,drive=d0") as machine:
            for number in range(requests):
                machine.qemu_io("d0", f"aio_write {number * 4}k 4k")
            with snapshot.exposed(machine) as found:
                yield found


def examinations() -> None:
    """Print what each part costs, for each build and size."""
    print("\nexamination: seconds of CPU (passed), MB of ours + of gdb's or drgn's")
    for label in BUILDS:
        build = next(each for each in lab.qemu_builds() if each.label == label)
        if not build.present:
            print(f"{label}: not here ({build.why_missing})")
            continue
        for threads, requests in [*((threads, 16) for threads in THREADS), (16, PARKED)]:
            with wedged(label, threads=threads, requests=requests) as found:
                scene = Scene(found.frozen)
                cost_of(scene.unwind)  # a warm-up: page cache, gdb's index
                print(f"{label}, {len(scene.core.threads)} threads, {len(scene.parked)} parked coroutines")
                for name, part in scene.parts():
                    cost = cost_of(part)
                    print(
                        f"  {name:<18} {cost.cpu:6.3f} ({cost.wall:6.3f}) s  "
                        f"{cost.ours_mb:5.1f} + {cost.theirs_mb:5.1f} MB",
                        flush=True,
                    )


if __name__ == "__main__":
    examinations()
