"""What an examination is given: frozen bytes, a place to write, and at most a hint where symbols lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One capture's frozen bytes, of a VM that may be long gone.

    `read` takes a path inside the bundle and returns its bytes, empty when it is not there; `write` takes a file name
    inside evidence/gdb.threads/. `process` is /proc/PID while the VM still runs: the truest place for its binary and
    libraries (exe, map_files, root), even deleted ones. `scratch` is a private directory that is removed afterwards.
    """

    core: Path
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    scratch: Path
    second_core: Path | None = None
    process: Path | None = None
    debug_files: tuple[Path, ...] = ()
    debuginfod: str = ""
    seconds: float = 20.0
