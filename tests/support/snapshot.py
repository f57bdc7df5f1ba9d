"""A real VM's witness and freeze, laid out as an examination is given them; and small cores made by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from autopsy.bundle import layout
from autopsy.capture.freeze import step as freeze
from autopsy.capture.gdb.mapped import mapped
from autopsy.capture.proc import step as proc
from autopsy.capture.proc import witness
from autopsy.capture.step import Collected, Deadline, Options, Scene
from autopsy.drill.machine import Machine
from autopsy.examine.boxed import SandboxFiles
from autopsy.examine.core.inputs import Frozen
from autopsy.linux.child import in_child
from autopsy.target.target import Target, find_target
from support import lab
from support.freezing import expose_again

SECONDS = 10.0
PLACES = {"rax": 10, "rdx": 12, "rsi": 13, "rdi": 14, "orig_rax": 15, "rip": 16, "rsp": 19, "fs_base": 21}


@dataclass(frozen=True, slots=True)
class Exposed:
    """One VM, exposed. `frozen` is what an examination is given; `record` reads back what it wrote."""

    frozen: Frozen
    place: Path

    def record(self, file: str, kind: Any) -> Any:
        return msgspec.json.decode((self.place / "evidence" / layout.GDB_THREADS / file).read_bytes(), type=kind)


@contextmanager
def exposed(machine: Machine, *, again: bool = False, alive: bool = True) -> Iterator[Exposed]:
    """Witness and freeze a machine, twice if `again`; then let it run."""
    with lab.folder() as place:
        target = find_target(f"pid:{machine.pid}")
        try:
            _run(place, target, layout.WITNESS, witness.witness_threads)
            _run(place, target, layout.FREEZE, freeze.expose)
            if again:
                _run(place, target, layout.SECOND_EXPOSURE, proc.tasks_again, proc.fds_again, expose_again)
        finally:
            os.close(target.pidfd)
        results = place / "evidence" / layout.GDB_THREADS
        results.mkdir(parents=True)
        scratch = place / "scratch"
        scratch.mkdir()
        maps = (place / "evidence" / layout.WITNESS / layout.MAPS).read_bytes()
        with mapped(machine.pid, maps if alive else b"") as held:
            table = SandboxFiles(scratch)
            files = tuple(replace(each, path=_itself(each.path, table)) for each in held)
            yield Exposed(
                Frozen(
                    core=place / layout.CORE,
                    read=lambda path: (place / path).read_bytes() if (place / path).is_file() else b"",
                    write=lambda file, data: _write(results / file, data),
                    scratch=scratch,
                    second_core=place / "evidence" / layout.SECOND_EXPOSURE / layout.CORE if again else None,
                    mapped=files,
                ),
                place,
            )


def _itself(path: Path, table: SandboxFiles) -> Path:
    """Return the file itself: gdb follows a descriptor by its name, which in a container is another file's out here."""
    named = path.resolve()
    return path if not named.exists() or named.samefile(path) else table.lay(path) or path


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _run(place: Path, target: Target, step: str, *collectors: Any) -> None:
    (place / "evidence" / step).mkdir(parents=True)
    scene = Scene(target, replace(Options(), gap=0.5), place, step, Deadline(SECONDS))

    def work() -> bytes:
        for collect in collectors:
            outcome = collect(scene)
            if not isinstance(outcome, Collected):
                return f"{type(outcome).__name__}: {outcome.why}".encode()
        return b""

    trouble = in_child(work, SECONDS)
    assert trouble == b"", trouble.decode()


def thread_note(tid: int, **registers: int) -> bytes:
    """Return one thread's note for a core made by hand; registers that are not named are 0."""
    values = [0] * 27
    for name, value in registers.items():
        values[PLACES[name]] = value & (1 << 64) - 1
    body = struct.pack("<32xI76x27Qi4x", tid, *values, 0)
    return struct.pack("<III", 5, len(body), 1) + b"CORE\0\0\0\0" + body


def core_of(threads: bytes, *memory: tuple[int, bytes]) -> bytes:
    """Return a core made by hand: notes, and (address, bytes) that are frozen."""
    count = len(memory) + 1
    at = 64 + 56 * count
    headers = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(threads), 0, 4)]
    body = threads
    for address, data in memory:
        headers.append(struct.pack("<IIQQQQQQ", 1, 6, at + len(body), address, 0, len(data), len(data), 1))
        body += data
    identity = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    start = struct.pack("<16sHHIQQQIHHHHHH", identity, 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0)
    return start + b"".join(headers) + body


def mutex(*, lock: int = 2, count: int = 0, owner: int = 0, kind: int = 0) -> bytes:
    """Return glibc's pthread_mutex_t."""
    return struct.pack("<iIiIi", lock, count, owner, 1, kind).ljust(40, b"\0")
