"""Have the heap walked where QEMU's debug information is at hand, in a process that may crash or be ended."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

import autopsy
from autopsy.bundle import layout
from autopsy.bundle.heap.loops import Context
from autopsy.bundle.heap.records import Exposure, Heap
from autopsy.bundle.records import ThreadStack
from autopsy.examine.core.find_files import Found
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.gdb.mi import RAILS, bound_to
from autopsy.examine.previous import NOTHING, Earlier
from autopsy.examine.threads.poll_sets import polled, rings_poll
from autopsy.examine.threads.states import freeze_record, tasks
from autopsy.examine.view import View

MOST_SECONDS = 15.0
MOST_WORDS = 300
GOODBYE_SECONDS = 0.5
WITHOUT_DRGN = "drgn is not installed (pip install autopsy[heap]): gdb walked the heap, of the first exposure only"


@dataclass(frozen=True, slots=True)
class Walking:
    """A walk that may be under way. `found` are the symbols, `why` tells why there is no walk."""

    frozen: Frozen
    found: Found | None
    why: str
    child: subprocess.Popen[bytes] | None
    answer: Path
    errors: Path
    ends_at: float


def examine(view: View) -> Heap:
    """Write heap.json: the heap, or why it could not be walked."""
    return finish(start(view.frozen, view.symbols, view.left()), view.threads)


def start(frozen: Frozen, symbols: Symbols, seconds: float) -> Walking:
    """Begin a walk that ends by itself, or `seconds` from now: it runs beside whatever else is examined."""
    found = _debug_information(symbols)
    seconds = min(MOST_SECONDS, seconds)
    answer, errors = frozen.scratch / "heap-walk.answer", frozen.scratch / "heap-walk.log"
    child = None
    if found is None:
        why = "no debug information (DWARF) for the QEMU binary is at hand"
    else:
        command, why = _command(frozen, symbols, found)
        try:
            child = _spawn(command, _request(frozen, symbols, found, seconds), answer, errors)
        except OSError as error:
            why = f"the heap walk could not be started: {error.strerror}"
    return Walking(frozen, found, why, child, answer, errors, time.monotonic() + seconds)


def finish(walking: Walking, threads: Iterable[ThreadStack] = (), earlier: Earlier = NOTHING) -> Heap:
    """Wait for the walk, write heap.json, and return what it says."""
    heap = _collect(walking)
    for left in (walking.answer, walking.errors):
        left.unlink(missing_ok=True)
    comms = {thread.tid: thread.comm for thread in threads}
    comms |= {tid: task.comm for tid, task in tasks(walking.frozen.read).items()}
    heap = msgspec.structs.replace(
        heap,
        symbols=walking.found.source if walking.found else "",
        first=_named(heap.first, comms),
        second=_named(heap.second, comms),
    )
    heap = earlier.best_heap(heap)
    walking.frozen.write(layout.HEAP, msgspec.json.format(msgspec.json.encode(heap), indent=1) + b"\n")
    return heap


def _request(frozen: Frozen, symbols: Symbols, found: Found, seconds: float) -> bytes:
    fds = polled(frozen.read)
    return msgspec.json.encode(
        {
            "core": str(frozen.core),
            "debug": str(found.path),
            "images": [{"path": str(each.file.path), "bias": each.bias} for each in symbols.images if each.file],
            "frozen_at_ns": freeze_record(frozen.read).frozen_at_ns,
            "seconds": seconds,
            "second_core": str(frozen.second_core or ""),
            "second_at_ns": freeze_record(frozen.read, layout.SECOND_EXPOSURE).frozen_at_ns,
            "polled": None if fds is None else sorted(fds),
            "rings_poll": rings_poll(frozen.read),
        }
    )


def _command(frozen: Frozen, symbols: Symbols, found: Found) -> tuple[list[str], str]:
    """Return what walks: a Python with drgn, and where there is none the Python inside gdb, with what that costs."""
    if importlib.util.find_spec("drgn") is not None:
        return [sys.executable, "-P", "-m", "autopsy.examine.heap.walk"], ""
    binary = symbols.main.file if symbols.main else None
    walk = f"import sys; sys.path[:0] = {sys.path!r}; from autopsy.examine import heap_gdb; heap_gdb.walk()"
    command = ["gdb", "-nx", "-q", "-batch"]
    for rail in RAILS:
        command += ["-iex", rail]
    command += ["-e", str((binary or found).path), "-s", str(found.path), "-c", str(frozen.core)]
    return [*command, "-ex", f"python {walk}"], WITHOUT_DRGN


def _spawn(command: list[str], request: bytes, answer: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start the walk with files for its ends, so that neither side ever waits for the other's pipe."""
    with tempfile.TemporaryFile(dir=answer.parent) as asked, open(answer, "wb") as told, open(errors, "wb") as log:
        asked.write(request)
        asked.seek(0)
        return subprocess.Popen(
            command,
            stdin=asked,
            stdout=told,
            stderr=log,
            env=_environment(),
            preexec_fn=partial(bound_to, os.getpid()),  # noqa: PLW1509 - an examination runs in a process of one thread
        )


def _collect(walking: Walking) -> Heap:
    """Return the walk's last whole line, which is the best it could do, and in `why` what ended it early."""
    if walking.child is None:
        return Heap(why=walking.why)
    why = walking.why
    try:
        code = walking.child.wait(max(0.0, walking.ends_at - time.monotonic()))
    except subprocess.TimeoutExpired:
        walking.child.kill()
        with suppress(subprocess.TimeoutExpired):
            walking.child.wait(GOODBYE_SECONDS)
        why = "the heap walk was ended: it took longer than it may"
    else:
        if code:
            words = walking.errors.read_bytes()[-MOST_WORDS:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            why = f"the heap walk ended with {code}: {words}"
    lines = walking.answer.read_bytes().split(b"\n")
    for line in reversed([each for each in lines if each]):
        try:
            return msgspec.structs.replace(msgspec.json.decode(line, type=Heap), why=why)
        except msgspec.DecodeError:
            continue
    return Heap(why=why or "the heap walk gave no answer")


def _debug_information(symbols: Symbols) -> Found | None:
    main = symbols.main
    for found in (main.debug, main.file) if main else ():
        if found and found.elf.has_dwarf:
            return found
    return None


def _environment() -> dict[str, str]:
    """Return our environment with our own package in reach, and without servers that debug information comes from."""
    house = str(Path(autopsy.__file__).resolve().parent.parent)
    inherited = {name: value for name, value in os.environ.items() if name not in ("DEBUGINFOD_URLS", "PYTHONPATH")}
    return {**inherited, "PYTHONPATH": house, "PYTHONDONTWRITEBYTECODE": "1"}


def _named(exposure: Exposure | None, comms: Mapping[int, str]) -> Exposure | None:
    """Name the contexts of QEMU's own iothreads, which no object names, by the threads that run them."""
    if exposure is None:
        return None

    def named(context: Context) -> Context:
        if context.name or context.tid not in comms:
            return context
        return msgspec.structs.replace(context, name=comms[context.tid].removeprefix("IO "))

    return msgspec.structs.replace(exposure, contexts=tuple(named(each) for each in exposure.contexts))
