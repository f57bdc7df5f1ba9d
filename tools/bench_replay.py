"""Measures how fast stored bundles are diagnosed again, and whether memory stays flat over a thousand of them."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from support import stored

BUNDLES = 1000
AIM = 30.0  # bundles a second and core


def measure() -> str:
    """Return bundles per second of CPU, and the memory after a tenth and at the end."""
    bundles = [case.bundle for case in stored.CASES]
    began, used = time.perf_counter(), time.process_time()
    early = 0
    for number in range(BUNDLES):
        diagnose(gather_facts(open_bundle(bundles[number % len(bundles)])))
        if number == BUNDLES // 10:
            early = _resident()
    used, took = time.process_time() - used, time.perf_counter() - began
    gc.collect()
    late = _resident()
    return (
        f"replay: {BUNDLES} bundles of {len(bundles)} stored cases: {BUNDLES / used:.0f} a second and core "
        f"(aim: {AIM:.0f}), {took:.0f} s; "
        f"memory {early / 1e6:.1f} MB after {BUNDLES // 10}, {late / 1e6:.1f} MB at the end"
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
