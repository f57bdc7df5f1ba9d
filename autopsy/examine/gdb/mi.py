"""Speak with one gdb.

gdb/MI is read to the result record of the token that was sent, because silence is no sign that gdb is done. On files
alone, ending it, even by SIGKILL, harms nothing; whoever has it attach to a process sees to what that leaves.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import selectors
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pygdbmi import gdbmiparser

from autopsy.errors import ExaminationFailed

MOST_OUTPUT = 128 << 20
LARGEST_FILE = 1 << 30  # what gdb may write: a log, an index of QEMU's debug information
ROOTS_CACHE = Path("/var/cache/autopsy")
GOODBYE_SECONDS = 0.2
ANSWER_SECONDS = 0.5  # of the cache's file system
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


class GdbError(Exception):
    """gdb refused a command, in its own words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What gdb printed for a command; `whole` is False if the deadline or the bound on output cut it."""

    text: str
    whole: bool


class Gdb:
    """One gdb in a process group of its own, until the `with` block ends or the deadline passes."""

    def __init__(self, scratch: Path, *, ends_at: float) -> None:
        self._ends_at = ends_at
        self._token = 0
        self._buffer = bytearray()
        self._gone = False
        self._log = scratch / "gdb.log"
        arguments = ["gdb", "--interpreter=mi3", "-nx", "-q"]
        for setting in (*RAILS, *BACKTRACE, *index_cache()):
            arguments += ["-iex", setting]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DEBUGINFOD")}
        environment |= {"LC_ALL": "C.UTF-8", "TERM": "dumb"}
        with open(self._log, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=scratch,
                    env=environment,
                    process_group=0,  # a Ctrl-C on our terminal is not for gdb; in our session, it ends with our child
                    preexec_fn=partial(bound_to, os.getpid()),  # noqa: PLW1509 - an examination runs in a process of one thread
                )
            except FileNotFoundError as error:
                raise ExaminationFailed("gdb", "is not installed", remedy="apt install gdb") from error
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End gdb: ask by closing its input, then SIGKILL."""
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._selector.close()
        self._stdout.close()

    def run(self, command: str) -> Answer:
        """Run a console command and return what it printed.

        Raises GdbError if gdb refuses it, ExaminationFailed if gdb has gone.
        """
        self._token += 1
        escaped = command.replace("\\", "\\\\").replace('"', '\\"')
        try:
            self._stdin.write(f'{self._token}-interpreter-exec console "{escaped}"\n'.encode())
            self._stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def log(self, most: int = 1 << 20) -> bytes:
        """Return the beginning of what gdb wrote to stderr."""
        with open(self._log, "rb") as stream:
            return stream.read(most)

    def last_words(self) -> str:
        """Return the last line of gdb's stderr."""
        lines = self.log().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def _answer(self) -> Answer:
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
                    return Answer("".join(printed), whole=False)
            elif record["type"] == "result" and record.get("token") == self._token:
                if record["message"] == "error":
                    payload = record["payload"]
                    raise GdbError(str(payload.get("msg", "")) if isinstance(payload, dict) else "")
                return Answer("".join(printed), whole=True)
        if self._gone and not printed:
            raise self._ended()
        return Answer("".join(printed), whole=False)

    def _ended(self) -> ExaminationFailed:
        return ExaminationFailed("gdb", f"ended by itself: {self.last_words()}", remedy="see gdb.log")

    def _line(self) -> bytes | None:
        """Return gdb's next line; None at the deadline or when gdb has gone."""
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            left = self._ends_at - time.monotonic()
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


def cache_directory() -> Path | None:
    """Return our directory for gdb's index cache, made and private, or None where there is no such place.

    It must be a directory of ours that nobody else can write: gdb maps the indexes it finds there.
    """
    if os.geteuid() == 0:
        folder = ROOTS_CACHE
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        folder = Path(base if base.startswith("/") else os.path.expanduser("~/.cache")) / "autopsy"
    if not _answers(folder):
        return None
    try:
        facts = os.lstat(folder)
    except OSError:
        return None
    private = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
    return folder if private and os.access(folder, os.W_OK) else None


def _answers(folder: Path) -> bool:
    """Return whether a directory can be made and written to, as a child finds out: its file system may be stuck."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        with suppress(BaseException):
            bound_to(parent)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                status = 0
        os._exit(status)
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(ANSWER_SECONDS * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # where it sleeps in the kernel, it dies when it wakes
            return False
    finally:
        os.close(pidfd)
    return os.waitpid(pid, 0)[1] == 0


def index_cache() -> tuple[str, ...]:
    """Return the settings that let gdb keep its indexes from one capture to the next, none where it may not."""
    folder = cache_directory()
    if folder is None or any(character in str(folder) for character in "\n\"'\\"):
        return ()
    return (f"set index-cache directory {folder}", "set index-cache enabled on")


def bound_to(parent: int) -> None:
    """Die with the examination, and never fill a disk or leave a core of its own."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended between the fork and the request
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
