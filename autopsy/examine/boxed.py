"""Examines frozen bytes in a process that can do nothing else: every one of them may be a stranger's.

What it needs is opened, and where nobody else may read it copied, before; what it finds is written here, by name, from
a short list of layout. Its death is an answer as well, and nothing is tried again outside.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field, replace
from importlib import import_module
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.examine.core.debuginfod import KINDS
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.gdb.mi import HOSTILE
from autopsy.examine.heap import run as heap
from autopsy.files import private
from autopsy.linux import regular
from autopsy.linux.confine import confined
from autopsy.linux.confine.confined import MOST_ALTOGETHER, AnswerPipe, Died, TooSlow, WorkRaised
from autopsy.linux.confine.sandbox import Confined, Sandbox, python_tree

MOST_COPIED = 1 << 30  # of the process's files together
MOST_FETCHES = 8  # a build-id that is asked for is 32 bytes that leave the host
SPARE_SECONDS = 2.0  # for an examination that ends at its own deadline to say so
MOST_CPU = 600
HOURS = 1_000_000  # seconds
TERMINAL = Path("/dev/tty")
SECOND = "second"  # what is asked for: that the second snapshot is there
REMEDY = "examine the bundle elsewhere: autopsy examine BUNDLE"
# Nothing else is written, whatever is said: beside these lies what the kernel told.
WRITTEN = frozenset(
    {
        layout.BACKTRACE,
        layout.THREADS,
        layout.COROUTINES,
        layout.COROUTINES_TEXT,
        layout.LOCKS,
        layout.MAIN_LOOP,
        layout.EVENTFDS,
        layout.WORKERS,
        layout.MODULES,
        layout.HEAP,
        layout.LEFT_OUT,
        layout.VIRTQUEUES,
        layout.RINGS,
        layout.GDB_LOG,
    }
)
READ = re.compile(r"(evidence/[a-z.-]{1,40}/)?[a-z0-9.-]{1,60}")


def examine_boxed(frozen: Frozen, part: Callable[[Frozen], str], *, at_terminal: bool = False) -> str:
    """Run one examination in the sandbox and return its line; what it writes is there, whatever became of it.

    With `at_terminal` it keeps ours, and all the time that a person wants.

    Raises:
        ExaminationFailed: as `part` raises it, or the process that worked it out died, or took too long.
    """
    with begun_boxed(frozen, part, at_terminal=at_terminal) as line:
        return line()


@contextmanager
def begun_boxed(
    frozen: Frozen, part: Callable[[Frozen], str], *, at_terminal: bool = False, ahead: tuple[str, ...] = ()
) -> Iterator[Callable[[], str]]:
    """Have an examination begin in the sandbox; what is yielded does the rest of what `examine_boxed` does.

    Nobody hears it before that is called: until then it has the cores and the files named in `ahead`, and waits as soon
    as it wants more.

    Raises:
        ExaminationFailed: it cannot begin.
    """
    frozen.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = frozen.scratch / private.token()  # its own: where another process was, anything may have been laid
    os.close(private.make(scratch))
    with ExitStack() as stack:
        try:
            core = _held(frozen.core, stack)
            second_core = None if frozen.second_core is None else _held(frozen.second_core, stack)
        except OSError as error:
            words = f"core cannot be read: {error}"
            raise ExaminationFailed("core", words, remedy="capture again; see the outcome of freeze") from error
        table = SandboxFiles(scratch)
        given = replace(
            frozen,
            mapped=tuple(replace(mapping, path=path) for mapping in frozen.mapped if (path := table.lay(mapping.path))),
            debug_files=tuple(path for debug_file in frozen.debug_files if (path := table.lay(debug_file))),
        )
        at_hand = {path: frozen.read(path) for path in ahead}
        load()
        if not heap.has_drgn():
            heap.lay_out(scratch)
        box = Sandbox(
            scratch=scratch,
            readable=(*python_tree(), *table.readable),
            keep=(core,) if second_core is None else (core, second_core),
            writable=(TERMINAL,) if at_terminal else (),
            cpu_seconds=HOURS if at_terminal else MOST_CPU,
        )
        ends_at = time.monotonic() + (HOURS if at_terminal else frozen.seconds + SPARE_SECONDS)

        def work(inside: Confined, line: AnswerPipe) -> bytes:
            moved = replace(
                given,
                core=core,
                second_core=second_core,
                scratch=inside.scratch,
                mapped=tuple(replace(mapping, path=table.inside(mapping.path, inside)) for mapping in given.mapped),
                debug_files=tuple(table.inside(debug_file, inside) for debug_file in given.debug_files),
                read=lambda path: at_hand[path] if path in at_hand else line.ask(f"read/{path}"),
                write=lambda file, data: line.tell(f"write/{file}", data),
                fetch=lambda kind, build_id: _path(line.ask(f"fetch/{kind}", build_id.encode()), inside),
                second_is_there=lambda: bool(line.ask(SECOND)),
            )
            heap.lead_to(inside.given, inside.scratch)
            return "; ".join(filter(None, (part(moved), *inside.lacking))).encode("utf-8", "replace")

        answer = stack.enter_context(confined.begun(work, box, words=_in_words, own_input=at_terminal))
        hear = _Listener(frozen, scratch).hear

        def line() -> str:
            try:
                return answer(ends_at - time.monotonic(), hear, MOST_ALTOGETHER).decode("utf-8", "replace")
            except TooSlow:
                cause = "it was ended: it took longer than it may"
                raise ExaminationFailed("examination", cause, remedy=REMEDY) from None
            except Died as error:
                raise ExaminationFailed("examination", f"{error}; {HOSTILE}", remedy=REMEDY) from None
            except WorkRaised as error:
                raise _as_raised(error) from None

        yield line


@dataclass(slots=True)
class SandboxFiles:
    """Where files lie that the one inside may read: at their own path if anybody may, else copied to scratch."""

    scratch: Path
    readable: list[Path] = field(default_factory=list)
    left: int = MOST_COPIED
    copies: int = 0
    laid: dict[tuple[int, int], Path] = field(default_factory=dict)

    def lay(self, path: Path) -> Path | None:
        """Return where the file is to be read, None where it cannot be had."""
        try:
            descriptor = regular.open_regular(path)
        except OSError:
            return None
        try:
            facts = os.fstat(descriptor)
            identity = facts.st_dev, facts.st_ino
            if identity not in self.laid and (laid_path := self._own_path(descriptor) or self._copy(descriptor)):
                self.laid[identity] = laid_path
            return self.laid.get(identity)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def inside(self, path: Path, box: Confined) -> Path:
        """Return the path as the one inside must say it."""
        return box.given / path.relative_to(self.scratch) if path.is_relative_to(self.scratch) else path

    def _own_path(self, descriptor: int) -> Path | None:
        path = regular.name_of(descriptor)
        if path is None or path.is_relative_to(self.scratch):
            return path
        if os.geteuid() == 0 and not regular.anybody_reads(path):
            return None
        self.readable.append(path)
        return path

    def _copy(self, descriptor: int) -> Path | None:
        folder = self.scratch / "files"
        if not self.copies:
            os.close(private.make(folder))
            folder.chmod(0o755)
        self.copies += 1
        copy = folder / str(self.copies)
        copied = regular.copy(descriptor, copy, self.left)
        self.left -= copied
        return copy if copied else None


@dataclass(slots=True)
class _Listener:
    """Our own end of the line: the files that may be asked for, and those that may be written."""

    frozen: Frozen
    scratch: Path
    fetches: int = 0

    def hear(self, name: str, data: bytes) -> bytes:
        verb, _, what = name.partition("/")
        if verb == "write" and what in WRITTEN:
            self.frozen.write(what, data)
        elif verb == "read" and READ.fullmatch(what) and what.rpartition("/")[2] != layout.CORE:
            return self.frozen.read(what)
        elif verb == "fetch" and what in KINDS and self.fetches < MOST_FETCHES:
            self.fetches += 1
            return self._fetched(what, data)
        elif name == SECOND and self.frozen.second_is_there():
            return SECOND.encode()
        return b""

    def _fetched(self, kind: str, build_id: bytes) -> bytes:
        """Return the fetched file's path below scratch, empty where there is none."""
        path = self.frozen.fetch(kind, build_id.decode("ascii", "replace"))
        if path is None:
            return b""
        with suppress(OSError):
            descriptor = regular.open_regular(path)
            try:
                copy = self.scratch / f"fetched-{kind}"
                copy.unlink(missing_ok=True)
                if regular.copy(descriptor, copy, MOST_COPIED):
                    return copy.name.encode()
            finally:
                os.close(descriptor)
        return b""


def _path(name: bytes, inside: Confined) -> Path | None:
    return inside.given / os.fsdecode(name) if name else None


def _held(core: Path | int, stack: ExitStack) -> int:
    if not isinstance(core, Path):
        return core
    descriptor = regular.open_regular(core)
    stack.callback(os.close, descriptor)
    return descriptor


def load() -> None:
    """Load what is loaded late: where our own files lie below root's home, nobody else could read them any more."""
    for name in ("lzma", "zlib", "bz2", "tempfile", "pygdbmi.gdbmiparser"):
        import_module(name)
    if not heap.has_drgn() or os.geteuid() != 0:
        return
    houses = (os.__file__, __file__, getattr(importlib.util.find_spec("drgn"), "origin", None) or "")
    if not all(regular.anybody_reads(Path(house)) for house in houses):
        import_module("autopsy.examine.heap.walk")


def _in_words(error: BaseException) -> bytes:
    if isinstance(error, ExaminationFailed):
        return msgspec.json.encode((error.thing, error.cause, error.remedy))
    return msgspec.json.encode(("examination", f"{type(error).__name__}: {error}", REMEDY))


def _as_raised(error: WorkRaised) -> ExaminationFailed:
    try:
        part, cause, remedy = msgspec.json.decode(error.data, type=tuple[str, str, str])
    except msgspec.DecodeError:
        return ExaminationFailed("examination", str(error), remedy=REMEDY)
    return ExaminationFailed(part, cause, remedy=remedy)
