"""How long a QEMU's own mmap, munmap, page fault and thread start take at worst, with and without a look at it.

A stopwatch outside sees a stop; what it does not see is that reading some files of /proc holds the lock of the VM's
memory map for as long as it takes to walk all that the guest has touched. So the stopwatch runs inside.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from autopsy.linux.mappings import parse_maps
from autopsy.target.guest_ram import guest_ram
from support import lab

OPERATIONS = ("mmap", "page fault", "munmap", "thread start")
WORDS = struct.Struct("<5Q")


def python(*arguments: str) -> Callable[[], object]:
    """Return what runs autopsy with these arguments."""
    return lambda: subprocess.run([sys.executable, "-m", "autopsy", *arguments], check=True, capture_output=True)


def measured(words: mmap.mmap, during: Callable[[], object]) -> tuple[float, ...]:
    """Return the worst of each operation, in ms, while something goes on."""
    words[: WORDS.size] = bytes(WORDS.size)
    during()
    return tuple(each / 1e6 for each in WORDS.unpack(words[: WORDS.size])[:4])


def touch(pid: int, size: int) -> None:
    """Write the guest's memory, all of it: it holds zeros, and zeros are what is written."""
    mappings = parse_maps(Path(f"/proc/{pid}/maps").read_bytes())
    (start,) = [each.start for each in mappings if each.size == size and each.start in guest_ram(mappings)]
    memory = os.open(f"/proc/{pid}/mem", os.O_WRONLY)
    for offset in range(0, size, 1 << 20):
        os.pwrite(memory, bytes(1 << 20), start + offset)
    os.close(memory)


def table(pid: int, words: mmap.mmap, repeats: int, place: Path) -> None:
    """Print a line for each way to look at the VM."""
    kinds: tuple[tuple[str, Callable[[], object]], ...] = (
        ("nothing", lambda: time.sleep(4)),
        ("capture", python("capture", f"pid:{pid}", "--out", str(place))),
        ("capture --fast", python("capture", f"pid:{pid}", "--fast", "--out", str(place))),
        ("ps", python("ps")),
        ("for comparison: cat smaps", lambda: Path(f"/proc/{pid}/smaps").read_bytes()),
    )
    print(f"{'ms, median (worst)':28}" + "".join(f"{each:>20}" for each in OPERATIONS))
    for name, during in kinds:
        rows = [measured(words, during) for _ in range(repeats)]
        cells = (f"{statistics.median(column):.2f} ({max(column):.2f})" for column in zip(*rows, strict=True))
        print(f"{name:28}" + "".join(f"{each:>20}" for each in cells), flush=True)


def main() -> None:
    """Run one QEMU with touched memory, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=int, default=6, help="of guest memory, all of it touched in 4 KB pages")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stalls-") as scratch:
        library, results = Path(scratch) / "stalls.so", Path(scratch) / "words"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
        results.write_bytes(bytes(4096))
        os.environ["BENCH_STALLS"], os.environ["LD_PRELOAD"] = str(results), str(library)
        accelerate = lab.KVM if lab.kvm_works() else lab.TCG
        with lab.qemu("7.2", memory=given.gigabytes << 10, accelerate=accelerate) as vm:
            del os.environ["LD_PRELOAD"]
            touch(vm.pid, given.gigabytes << 30)
            with results.open("r+b") as stream, mmap.mmap(stream.fileno(), 4096) as words:
                print(f"{given.gigabytes} GB touched, load {os.getloadavg()[0]:.1f}, {given.repeats} repeats")
                table(vm.pid, words, given.repeats, Path(scratch))


if __name__ == "__main__":
    main()
