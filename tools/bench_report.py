"""Measures how fast, in how much memory and how large the report of a crowded VM is, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

THREADS = 500
COROUTINES = 1000
AIM_SECONDS = 1.0
AIM_MEMORY = 200
AIM_SIZE = 3.0


def measure() -> str:
    """Return seconds of CPU, MB of peak memory and MB of HTML."""
    return subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Render once, as a capture does: with nothing loaded and no template compiled."""
    began, used = time.perf_counter(), time.process_time()

    from autopsy.report.html import html  # noqa: PLC0415 - loading it is part of what is measured
    from support import reports  # noqa: PLC0415 - likewise

    bundle = reports.crowd(THREADS - 22, COROUTINES).bundle()
    loaded = time.process_time() - used
    page = html(bundle)
    seconds, took = time.process_time() - used - loaded, time.perf_counter() - began
    size = len(page.encode()) / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"report of {THREADS} threads and {COROUTINES} coroutines: {seconds:.2f} s of CPU (aim: {AIM_SECONDS:.0f}), "
        f"{memory:.0f} MB of memory (aim: {AIM_MEMORY}), {size:.1f} MB of HTML (aim: {AIM_SIZE:.0f}); "
        f"{took:.1f} s with Python's own start"
    )


if __name__ == "__main__":
    main()
