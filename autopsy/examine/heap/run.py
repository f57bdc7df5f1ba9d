"""Have the heap walked where QEMU's debug information is at hand, in a process that may crash or be ended."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

import autopsy
from autopsy.bundle import layout
from autopsy.bundle.heap.loops import Context
from autopsy.bundle.heap.records import Heap, HeapSnapshot
from autopsy.bundle.records import ThreadStack
from autopsy.dataclass import dataclass
from autopsy.examine.core import synthetic
from autopsy.examine.core.find_files import FoundFile
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.core.symbols import Symbols
from autopsy.examine.gdb.mi import HOSTILE, RAILS, bound_to
from autopsy.examine.gdb.unwind import notes
from autopsy.examine.previous import NOTHING, Earlier
from autopsy.examine.states import freeze_record, tasks
from autopsy.examine.threads.poll_sets import polled, rings_poll
from autopsy.examine.view import View
from autopsy.linux import environment
from autopsy.linux.confine.confined import signal_name
from autopsy.linux.confine.forked import Forked
from autopsy.linux.confine.sandbox import send_no_signal

MOST_SECONDS = 15.0
MOST_WORDS = 300
PYTHON = "python"  # below scratch: where gdb finds our modules
GOODBYE_SECONDS = 0.5
WITHOUT_DRGN = (
    "drgn is not installed (it is in the package vm-autopsy-heap): gdb walked the heap, of the first snapshot only"
)


@dataclass(frozen=True, slots=True)
class Walking:
    """A walk that may be under way. `debug_file` has the symbols, `why` tells why there is no walk.

    `tell` is the pipe through which it is told of the second snapshot, None where it walks no such one.
    """

    frozen: Frozen
    debug_file: FoundFile | None
    why: str
    child: subprocess.Popen[bytes] | Forked | None
    answer: Path
    errors: Path
    ends_at: float
    tell: int | None = None


def examine_heap(view: View) -> Heap:
    """Write heap.json: the heap, or why it could not be walked."""
    comms = {tid: state.comm for tid, state in view.states().items()}
    return finish(start(view.frozen, view.symbols, view.left()), comms, view.threads)


def start(frozen: Frozen, symbols: Symbols, seconds: float, *, second_is_to_come: bool = False) -> Walking:
    """Begin a walk that ends by itself, or `seconds` from now: it runs beside whatever else is examined.

    Where the second snapshot is still to come, the first is walked, and then `go_on` waited for.
    """
    debug_file = _debug_information(symbols)
    seconds = min(MOST_SECONDS, seconds)
    answer, errors = frozen.scratch / "heap-walk.answer", frozen.scratch / "heap-walk.log"
    child: subprocess.Popen[bytes] | Forked | None = None
    tell: int | None = None
    why = "" if has_drgn() else WITHOUT_DRGN
    try:
        if debug_file is None:
            why = "no debug information (DWARF) for the QEMU binary is at hand"
        elif has_drgn():
            hear, tell = (-1, None) if frozen.second_core is None else os.pipe2(os.O_CLOEXEC)
            request = _request(frozen, symbols, debug_file, seconds, frozen.core, second_from=hear)
            child = _fork(request, answer, errors, not_its_own=tell)
            if tell is not None:
                os.close(hear)
        else:
            core = _plain_core(frozen, symbols)
            request = _request(frozen, symbols, debug_file, seconds, core)
            child = _spawn(_command(frozen, symbols, debug_file, core), request, answer, errors)
    except OSError as error:
        why = f"the heap walk could not be started: {error.strerror}"
    walking = Walking(frozen, debug_file, why, child, answer, errors, time.monotonic() + seconds, tell)
    if not second_is_to_come:
        go_on(walking)
    return walking


def go_on(walking: Walking) -> None:
    """Tell a walk that the second snapshot is there."""
    if walking.tell is not None:
        frozen_at = freeze_record(walking.frozen.read, layout.SECOND_EXPOSURE).frozen_at_ns
        with suppress(BrokenPipeError):  # it has ended, and its own words say how
            os.write(walking.tell, b"%d" % frozen_at)
        os.close(walking.tell)


def give_up(walking: Walking) -> None:
    """End a walk that waits for a second snapshot which does not come."""
    if walking.tell is not None:
        os.close(walking.tell)
    if walking.child is not None:
        walking.child.kill()
        with suppress(subprocess.TimeoutExpired):
            walking.child.wait(GOODBYE_SECONDS)


def finish(
    walking: Walking,
    comms: Mapping[int, str] | None = None,
    threads: Iterable[ThreadStack] = (),
    earlier: Earlier = NOTHING,
) -> Heap:
    """Wait for the walk, write heap.json, and return what it says; `comms` are read where nobody has them."""
    heap = _collect(walking)
    for left in (walking.answer, walking.errors):
        left.unlink(missing_ok=True)
    if comms is None:
        comms = {tid: state.comm for tid, state in tasks(walking.frozen.read).items()}
    comms = {thread.tid: thread.comm for thread in threads} | dict(comms)
    heap = msgspec.structs.replace(
        heap,
        symbols=walking.debug_file.source if walking.debug_file else "",
        first=_named(heap.first, comms),
        second=_named(heap.second, comms),
    )
    heap = earlier.best_heap(heap)
    walking.frozen.write(layout.HEAP, msgspec.json.format(msgspec.json.encode(heap), indent=1) + b"\n")
    return heap


def _request(
    frozen: Frozen, symbols: Symbols, debug_file: FoundFile, seconds: float, core: Path | int, *, second_from: int = -1
) -> bytes:
    fds = polled(frozen.read)
    return msgspec.json.encode(
        {
            "core": _name(core),
            "debug": str(debug_file.path),
            "images": [{"path": str(image.file.path), "bias": image.bias} for image in symbols.images if image.file],
            "frozen_at_ns": freeze_record(frozen.read).frozen_at_ns,
            "seconds": seconds,
            "second_core": "" if frozen.second_core is None else _name(frozen.second_core),
            "second_from": second_from,
            "polled": None if fds is None else sorted(fds),
            "rings_poll": rings_poll(frozen.read),
        }
    )


def has_drgn() -> bool:
    """Return whether drgn walks the heap; where it is not installed gdb does."""
    return importlib.util.find_spec("drgn") is not None


def lay_out(scratch: Path) -> None:
    """Put what the Python inside gdb needs of ours where gdb can read it."""
    house = scratch / PYTHON
    if house.exists():
        return
    package, codec = Path(autopsy.__file__).parent, Path(msgspec.__file__).parent
    ours = ["__init__.py", "dataclass.py", "errors.py", *(f"{part}/**/*.py" for part in ("bundle", "examine", "linux"))]
    for folder, patterns in ((package, ours), (codec, ["*.py", "*.so"])):
        for file in (file for pattern in patterns for file in folder.glob(pattern)):
            copy = house / folder.name / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    for laid in (house, *house.rglob("*")):
        laid.chmod(0o755)  # for another user, whatever our umask is


def lead_to(given: Path, scratch: Path) -> None:
    """Have what was laid out found in the folder that is written to, where that is another."""
    if given != scratch and (given / PYTHON).is_dir():
        (scratch / PYTHON).symlink_to(given / PYTHON)


def _name(core: Path | int) -> str | int:
    return core if isinstance(core, int) else str(core)


def _plain_core(frozen: Frozen, symbols: Symbols) -> Path:
    """Write the core without the names of mapped files: gdb would open them, and take their bytes for the VM's."""
    path = frozen.scratch.absolute() / "heap.core"
    path.unlink(missing_ok=True)
    core = symbols.core
    synthetic.write(path, core.threads, list(core.extents), notes(core, {}))
    return path


def _command(frozen: Frozen, symbols: Symbols, debug_file: FoundFile, core: Path) -> list[str]:
    """Return a gdb whose own Python walks."""
    lay_out(frozen.scratch)
    binary = symbols.main.file if symbols.main else None
    house = str(frozen.scratch.absolute() / PYTHON)
    walk = (
        f"import sys; sys.path.insert(0, {house!r}); from autopsy.examine.heap import drgn_in_gdb; drgn_in_gdb.walk()"
    )
    command = ["gdb", "-nx", "-q", "-batch"]
    for rail in RAILS:
        command += ["-iex", rail]
    command += ["-e", str((binary or debug_file).path), "-s", str(debug_file.path), "-c", str(core)]
    return [*command, "-ex", f"python {walk}"]


def _fork(request: bytes, answer: Path, errors: Path, not_its_own: int | None) -> Forked:
    """Start drgn's walk as a copy of this process: nothing has to be found, or read, to start a program."""
    with tempfile.TemporaryFile(dir=answer.parent) as asked, open(answer, "wb") as answered, open(errors, "wb") as log:
        asked.write(request)
        asked.seek(0)
        return Forked.start(partial(_walk, not_its_own), (asked.fileno(), answered.fileno(), log.fileno()))


def _walk(not_its_own: int | None) -> None:
    send_no_signal()
    if not_its_own is not None:
        os.close(not_its_own)  # what is told through it ends with whoever tells it
    warnings.simplefilter("ignore")  # what Python thinks of drgn is no reason to end
    from autopsy.examine.heap.walk import main  # noqa: PLC0415 - drgn is large, and not always there

    main()


def _spawn(command: list[str], request: bytes, answer: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start the walk with files for its ends, so that neither side ever waits for the other's pipe."""
    with tempfile.TemporaryFile(dir=answer.parent) as asked, open(answer, "wb") as answered, open(errors, "wb") as log:
        asked.write(request)
        asked.seek(0)
        return subprocess.Popen(
            command,
            stdin=asked,
            stdout=answered,
            stderr=log,
            cwd=answer.parent,
            env=environment.ours(PYTHONDONTWRITEBYTECODE="1"),
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
        if code < 0:
            why = f"the heap walk died: {signal_name(-code)}; {HOSTILE}"
        elif code:
            words = walking.errors.read_bytes()[-MOST_WORDS:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            why = f"the heap walk ended with {code}: {words}"
    lines = walking.answer.read_bytes().split(b"\n")
    for line in reversed([text for text in lines if text]):
        try:
            return msgspec.structs.replace(msgspec.json.decode(line, type=Heap), why=why)
        except msgspec.DecodeError:
            continue
    return Heap(why=why or "the heap walk gave no answer")


def _debug_information(symbols: Symbols) -> FoundFile | None:
    main = symbols.main
    for file in (main.debug, main.file) if main else ():
        if file and file.elf.has_dwarf:
            return file
    return None


def _named(snapshot: HeapSnapshot | None, comms: Mapping[int, str]) -> HeapSnapshot | None:
    """Name the contexts of QEMU's own iothreads, which no object names, by the threads that run them."""
    if snapshot is None:
        return None

    def named(context: Context) -> Context:
        if context.name or context.tid not in comms:
            return context
        return msgspec.structs.replace(context, name=comms[context.tid].removeprefix("IO "))

    return msgspec.structs.replace(snapshot, contexts=tuple(named(context) for context in snapshot.contexts))
