"""Measures what the sandbox adds to a capture: captures of one VM with it and without it, in turns.

python tools/bench_confined.py [--pairs 20] [--build 7.2]

The product has no way to leave the sandbox away: here the functions that confine are put aside in a capture's own
process, so that the same work is done in it, as it would be without any sandbox.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopsy.linux.confine import confined, sandbox

HOUSE = Path(__file__).resolve().parent.parent
WITHOUT = "--without"  # the first word of a capture that this script runs itself


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one capture, of processors in user and kernel mode and on the clock, and thousands of page faults."""

    processor: float
    clock: float
    faults: float


@dataclass(frozen=True, slots=True)
class Inline:
    """A line to nobody: what is said is heard in the same process."""

    hear: Callable[[str, bytes], bytes]

    def tell(self, name: str, data: bytes) -> None:
        self.hear(name, data)

    def ask(self, name: str, data: bytes = b"") -> bytes:
        return self.hear(name, data)


def main() -> None:
    import argparse  # noqa: PLC0415 - a capture that this script runs is to load no more than any other
    import statistics  # noqa: PLC0415 - likewise

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--build", default="7.2")
    wanted = parser.parse_args()
    sys.path.insert(0, str(HOUSE / "tests"))
    from support import lab  # noqa: PLC0415 - likewise

    with lab.qemu(wanted.build, name="confined") as machine:
        time.sleep(1)
        ours = ([sys.executable, "-m", "autopsy"], [sys.executable, __file__, WITHOUT])
        for words in ours:  # the page cache
            captured(words, machine.pid)
        pairs = []
        for number in range(wanted.pairs):
            first, second = (0, 1) if number % 2 else (1, 0)  # whoever is second finds what the first one warmed
            costs = {which: captured(ours[which], machine.pid) for which in (first, second)}
            pairs.append((costs[0], costs[1]))
    for what, unit in (("processor", "s"), ("clock", "s"), ("faults", "thousand")):
        boxed, plain = ([getattr(pair[which], what) for pair in pairs] for which in (0, 1))
        ratios = sorted(a / b for a, b in zip(boxed, plain, strict=True))
        quarter = len(ratios) // 4
        print(
            f"{what:<10} with {statistics.median(boxed):.3f}, without {statistics.median(plain):.3f} {unit}; "
            f"ratio of a pair {statistics.median(ratios):.3f} (half of them {ratios[quarter]:.3f} to "
            f"{ratios[-1 - quarter]:.3f}), {len(ratios)} pairs"
        )


def captured(words: list[str], pid: int) -> Cost:
    import tempfile  # noqa: PLC0415 - as in main()

    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as out:
        began = time.monotonic()
        command = [*words, "capture", f"pid:{pid}", "--fast", "--gap", "0.5", "--out", out]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HOUSE)
        _, status, usage = os.wait4(child.pid, 0)  # with all that it has waited for
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"the capture ended with {child.returncode}")
        return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_minflt / 1000)


def without_a_sandbox() -> None:
    """Be a capture whose work on a stranger's bytes is done where it is asked for, by root."""

    def run(
        work: Callable[[sandbox.Confined, Inline], bytes],
        box: sandbox.Sandbox,
        *,
        hear: Callable[[str, bytes], bytes],
        **_more: object,
    ) -> bytes:
        scratch = box.scratch or Path("/")
        os.chdir(scratch)
        return work(sandbox.Confined(scratch, scratch, ()), Inline(hear))

    confined.run = run  # type: ignore[assignment]  # it takes the same words
    from autopsy.examine.gdb import mi  # noqa: PLC0415 - what it may not do is put aside first
    from autopsy.examine.heap import run as heap  # noqa: PLC0415 - likewise

    mi.send_no_signal = heap.send_no_signal = lambda: None
    from autopsy.cli.app import main as product  # noqa: PLC0415 - likewise

    sys.argv[1:2] = []
    product()


if __name__ == "__main__":
    without_a_sandbox() if sys.argv[1:2] == [WITHOUT] else main()
