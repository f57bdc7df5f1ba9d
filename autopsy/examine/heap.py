"""Have the heap walked where QEMU's debug information is at hand, in a process that may crash or be ended."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import msgspec

import autopsy
from autopsy.bundle import names
from autopsy.bundle.heap_loops import Context
from autopsy.bundle.heap_records import Exposure, Heap
from autopsy.bundle.records import FreezeRecord
from autopsy.examine.files import Found
from autopsy.examine.polls import polled
from autopsy.examine.view import View

MOST_SECONDS = 15.0
MOST_ANSWER = 256 << 20
ENDED_BY_US = "the heap walk was ended after {:.0f} s"


def examine(view: View) -> None:
    """Write heap.json: the heap, or why it could not be walked."""
    record = walk(view)
    view.frozen.write(names.HEAP, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def walk(view: View) -> Heap:
    """Return the heap by DWARF, or a record that says what was missing."""
    found = _debug_information(view)
    if found is None:
        return Heap(why="no debug information (DWARF) for the QEMU binary is at hand")
    if importlib.util.find_spec("drgn") is None:
        return Heap(symbols=found.source, why="drgn is not installed (pip install autopsy[heap])")
    seconds = min(MOST_SECONDS, view.left())
    request = {
        "core": str(view.frozen.core),
        "debug": str(found.path),
        "frozen_at_ns": _frozen_at(view, names.FREEZE),
        "seconds": seconds,
        "second_core": str(view.frozen.second_core or ""),
        "second_at_ns": _frozen_at(view, names.SECOND_EXPOSURE),
        "polled": sorted(fds) if (fds := polled(view.frozen.read)) is not None else None,
    }
    heap, trouble = _ask(msgspec.json.encode(request), view.frozen.scratch / "heap.json", seconds)
    if heap is None:
        return Heap(symbols=found.source, why=trouble)
    heap = msgspec.structs.replace(heap, symbols=found.source, first=_named(heap.first, view), why=trouble)
    return msgspec.structs.replace(heap, second=_named(heap.second, view))


def _debug_information(view: View) -> Found | None:
    main = view.symbols.main
    for found in (main.debug, main.file) if main else ():
        if found and found.elf.has_dwarf:
            return found
    return None


def _frozen_at(view: View, step: str) -> int:
    data = view.frozen.read(names.evidence(step, names.FREEZE_RECORD))
    try:
        return msgspec.json.decode(data, type=FreezeRecord).frozen_at_ns
    except msgspec.DecodeError:
        return 0


def _ask(request: bytes, answer: Path, seconds: float) -> tuple[Heap | None, str]:
    """Run the walk. Its last whole line is the best it could do; what ended it early is the second value."""
    trouble = ""
    with open(answer, "w+b") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "autopsy.examine.heap_walk"],
                input=request,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=seconds,
                env=_environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            trouble = ENDED_BY_US.format(seconds)
        except OSError as error:
            return None, f"the heap walk could not be started: {error.strerror}"
        else:
            if done.returncode:
                words = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
                trouble = f"the heap walk ended with {done.returncode}: {words[:300]}"
        output.seek(0)
        lines = [line for line in output.read(MOST_ANSWER).split(b"\n") if line]
    for line in reversed(lines):
        try:
            return msgspec.json.decode(line, type=Heap), trouble
        except msgspec.DecodeError:
            continue
    return None, trouble or "the heap walk gave no answer"


def _environment() -> dict[str, str]:
    """Return our environment with our own package in reach, and without servers that debug information comes from."""
    house = str(Path(autopsy.__file__).resolve().parent.parent)
    inherited = {name: value for name, value in os.environ.items() if name not in ("DEBUGINFOD_URLS", "PYTHONPATH")}
    return {**inherited, "PYTHONPATH": house, "PYTHONDONTWRITEBYTECODE": "1"}


def _named(exposure: Exposure | None, view: View) -> Exposure | None:
    """Name the contexts of QEMU's own iothreads, which no object names, by the threads that run them."""
    if exposure is None:
        return None
    comms = {thread.tid: thread.comm for thread in view.threads}

    def named(context: Context) -> Context:
        if context.name or context.tid not in comms:
            return context
        return msgspec.structs.replace(context, name=comms[context.tid].removeprefix("IO "))

    return msgspec.structs.replace(exposure, contexts=tuple(named(each) for each in exposure.contexts))
