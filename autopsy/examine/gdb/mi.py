"""Speak with one gdb.

gdb/MI is read to the result record of the token that was sent, because silence is no sign that gdb is done. On files
alone, ending it, even by SIGKILL, harms nothing; whoever has it attach to a process sees to what that leaves.
"""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pygdbmi import gdbmiparser

from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.linux.confine.confined import signal_name
from autopsy.linux.confine.sandbox import limit, send_no_signal
from autopsy.linux.environment import ours

MOST_OUTPUT = 128 << 20
LARGEST_FILE = 1 << 30  # what gdb may write: a log
GOODBYE_SECONDS = 0.2
HOSTILE = "the debug information may be hostile"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)

# Nothing that lies beside a binary, in it, or on the network is run, loaded or asked.
RAILS = (
    "set auto-load no",
    "set debuginfod enabled off",
    "set confirm off",
    "set pagination off",
    "set width 0",
    "set height 0",
    "set style enabled off",
    "set history save off",
    "set startup-with-shell off",
    "set may-call-functions off",
    "set auto-solib-add off",
    "set libthread-db-search-path /nonexistent",
    "set sysroot /",
)
# Arguments are what makes a backtrace exponentially slow, and what fills it with a guest's data.
BACKTRACE = (
    "set print frame-arguments presence",
    "set print entry-values no",
    "set print frame-info location-and-address",
    "set print address on",
    "set print max-depth 1",
    "set backtrace limit 256",
)


class NoGdb(ExaminationFailed):
    """There is no gdb on this machine, or it is not to be used."""


class GdbError(Exception):
    """gdb refused a command, in its own words."""


@dataclass(frozen=True, slots=True)
class GdbOutput:
    """What gdb printed for a command; `whole` is False if the deadline or the bound on output cut it."""

    text: str
    whole: bool


class Gdb:
    """One gdb in a process group of its own, until the `with` block ends or the deadline passes.

    One that is to attach to a process may signal it. `ends_at` is the deadline, on CLOCK_MONOTONIC.
    """

    def __init__(self, scratch: Path, *, ends_at: float, attaching: bool = False) -> None:
        self.ends_at = ends_at
        self._attaching = attaching
        self._token = 0
        self._buffer = bytearray()
        self._gone = False
        self._log = scratch / "gdb.log"
        arguments = ["gdb", "--interpreter=mi3", "-nx", "-q"]
        for setting in (*RAILS, *BACKTRACE):
            arguments += ["-iex", setting]
        with open(self._log, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=scratch,
                    env=ours(),
                    process_group=0,  # a Ctrl-C on our terminal is not for gdb; in our session, it ends with our child
                    preexec_fn=partial(bound_to, os.getpid(), attaching=attaching),  # noqa: PLW1509 - an examination runs in a process of one thread
                )
            except FileNotFoundError as error:
                raise NoGdb("gdb", "is not installed", remedy="apt install gdb") from error
            except OSError as error:
                raise ExaminationFailed("gdb", f"cannot be started: {error}", remedy="see `gdb --version`") from error
        assert self._process.stdin is not None  # noqa: S101 - Popen was given a pipe
        assert self._process.stdout is not None  # noqa: S101 - likewise
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Return the process ID of gdb itself."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Tell whether gdb has ended by itself."""
        return self._gone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End gdb: SIGKILL, for it would only tidy up; one that may be attached is asked before, its input closed."""
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(GOODBYE_SECONDS if self._attaching else 0)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._selector.close()
        self._stdout.close()

    def run(self, command: str) -> GdbOutput:
        """Run a console command and return what it printed.

        Raises GdbError if gdb refuses it, ExaminationFailed if gdb has gone.
        """
        return self.answer(self.begin(command))

    def begin(self, command: str) -> int:
        """Have a console command run, and return what its `answer` is asked for with; answers come in order.

        Nobody reads what gdb prints meanwhile: what is begun at once must fit into a pipe. Raises as `run` does.
        """
        self._token += 1
        escaped = command.replace("\\", "\\\\").replace('"', '\\"')
        try:
            self._stdin.write(f'{self._token}-interpreter-exec console "{escaped}"\n'.encode())
            self._stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._token

    def log(self, most: int = 1 << 20) -> bytes:
        """Return the beginning of what gdb wrote to stderr."""
        with open(self._log, "rb") as stream:
            return stream.read(most)

    def last_words(self) -> str:
        """Return the last line of gdb's stderr."""
        lines = self.log().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def answer(self, token: int) -> GdbOutput:
        """Return what a command printed that was begun. Raises as `run` does."""
        printed: list[str] = []
        size = 0
        while (line := self._line()) is not None:
            if line[:1] in b"=*(" or not line:
                continue
            record = gdbmiparser.parse_response(line.decode("utf-8", "replace"))
            if record["type"] == "console":
                printed.append(str(record["payload"]))
                size += len(line)
                if size > MOST_OUTPUT:
                    return GdbOutput("".join(printed), whole=False)
            elif record["type"] == "result" and record.get("token") == token:
                if record["message"] == "error":
                    payload = record["payload"]
                    raise GdbError(str(payload.get("msg", "")) if isinstance(payload, dict) else "")
                return GdbOutput("".join(printed), whole=True)
        if self._gone and not printed:
            raise self._ended()
        return GdbOutput("".join(printed), whole=False)

    def how_it_ended(self) -> str:
        """Return by which signal gdb died, or what it said last."""
        with suppress(subprocess.TimeoutExpired):
            if (code := self._process.wait(GOODBYE_SECONDS)) < 0:
                return f"died: {signal_name(-code)}; {HOSTILE}"
        return f"ended by itself: {self.last_words()}"

    def _ended(self) -> ExaminationFailed:
        return ExaminationFailed("gdb", self.how_it_ended(), remedy="see gdb.log")

    def _line(self) -> bytes | None:
        """Return gdb's next line; None at the deadline or when gdb has gone."""
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            left = self.ends_at - time.monotonic()
            if left <= 0 or scanned > MOST_OUTPUT or not self._selector.select(left):
                return None
            piece = self._stdout.read(1 << 20)
            if not piece:
                self._gone = True
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def bound_to(parent: int, *, attaching: bool = False) -> None:
    """Die with the examination, signal nobody but to attach, and never fill a disk or leave a core of its own."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended between the fork and the request
        os._exit(1)
    limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    limit(resource.RLIMIT_CORE, 0)
    if not attaching:
        send_no_signal()
