"""What an examination is given: frozen bytes, a place to write, and at most a hint where symbols lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autopsy.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class LiveMapping:
    """A file that the living process has mapped at `start`, to be read at `path`; `source` says in words whose."""

    start: int
    path: Path
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One capture's frozen bytes, of a VM that may be long gone.

    `read` takes a path inside the bundle and returns its bytes, empty when it is not there; `write` takes a file name
    inside evidence/gdb.threads/. A core is a path or an open descriptor. `second_is_there` waits for the second one,
    whose file is read from then on, and returns whether it could be taken. `mapped` are the process's own files while
    the VM still runs: the truest place for its binary and libraries, even deleted ones. `fetch` takes "debuginfo" or
    "executable" and a build-id, and returns what a server has of it. `scratch` is a private directory that is removed
    afterwards. `without_gdb` says why gdb is to be spared, empty where it is not: then stacks are unwound by our own
    means, in half of the time.
    """

    core: Path | int
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    scratch: Path
    second_core: Path | int | None = None
    second_is_there: Callable[[], bool] = lambda: True
    mapped: tuple[LiveMapping, ...] = ()
    debug_files: tuple[Path, ...] = ()
    fetch: Callable[[str, str], Path | None] = lambda _kind, _build_id: None
    seconds: float = 20.0
    without_gdb: str = ""
