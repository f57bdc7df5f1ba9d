"""Freezes a running VM's memory, registers and stacks into a core, with a stop too short to be felt."""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.bundle import layout
from autopsy.bundle.records import FreezeRecord, FrozenThread
from autopsy.capture.freeze import core_delta, core_writer
from autopsy.capture.freeze.chunk import Chunk
from autopsy.capture.freeze.core_room import room_for_core
from autopsy.capture.freeze.phases import Phases
from autopsy.capture.freeze.snapshot import (
    ARCHITECTURE,
    MemorySnapshot,
    ProcessGone,
    ThreadBefore,
    take_snapshot,
    tasks,
)
from autopsy.capture.reading.procfs import ProcessEnded, held, must_be_the_same
from autopsy.capture.step import Collected, Failed, Outcome, Scene
from autopsy.examine.core.reader import Core, CoreError
from autopsy.linux.batch import Unanswered
from autopsy.linux.mappings import PAGE, MappedProcess, modules
from autopsy.linux.tasks.present_memory import opened_memory
from autopsy.target.qemu_process import QemuProcess
from autopsy.target.target import is_alive

AT_PHENT = 4
PHENT_64 = 56  # sizeof(Elf64_Phdr)


def expose(scene: Scene) -> Outcome:
    """Write `core` and evidence/freeze/freeze.json."""
    return _expose(scene, None)


def expose_again(scene: Scene, into: int) -> Outcome:
    """Write freeze.json once more, and a core of what differs from `core` into a file, which stays empty otherwise."""
    return _expose(scene, into)


def _expose(scene: Scene, again_into: int | None) -> Outcome:
    phases = Phases()
    first = None if again_into is None else _first(scene)
    try:
        with _opened(scene) as process:
            auxv = _read(f"{process.path}/auxv")
            if why := _unsupported(auxv):
                return Failed(f"{why}; --live-gdb attaches a gdb instead, and the VM stands still meanwhile")
            known = tasks(process.pid, process.path)
            phases.done("threads")
            # Should the next reads hang on the lock of the memory map, this much is told.
            scene.write_json(layout.FREEZE_RECORD, _begun(known, phases))
            taken = take_snapshot(
                process,
                known,
                phases,
                ram_sizes=scene.target.process.ram_sizes,
                max_stop=scene.options.max_stop,
                deadline=scene.deadline,
                walks=scene.options.bpf,
                base=first,
                cap=room_for_core(scene.staging),
            )
            arguments = _arguments(scene.target.process)
    except (ProcessEnded, ProcessGone) as error:
        return Failed(str(error))
    except PermissionError as error:
        file = os.path.basename(error.filename or "ptrace")
        whose = f"{file} of process {scene.target.pid}"
        return Failed(f"{whose}: not permitted: run as root or with CAP_SYS_PTRACE; {_yama()}")
    except (FileNotFoundError, ProcessLookupError):
        return Failed(f"process {scene.target.pid} is gone")
    scene.write_json(layout.FREEZE_RECORD, taken.record(phases))
    notes = core_writer.Notes(
        pid=scene.target.pid,
        comm=taken.frozen_threads[0].comm.encode(),
        arguments=arguments,
        auxv=auxv,
        threads=taken.threads,
        files=modules(taken.mappings),
    )
    try:
        size = _write_core(scene, taken, notes) if again_into is None else _write_delta(again_into, taken, notes, first)
    except OSError as error:
        return Failed(f"the core could not be written: {error.strerror}")
    phases.done("write")
    scene.write_json(layout.FREEZE_RECORD, taken.record(phases, core_bytes=size))
    return Collected(_summary(taken), stop_ns=taken.stop_ns)


def unsupported(pid: int) -> str:
    """Return why a process cannot be frozen on any day, empty if it can.

    Raises:
        OSError: it is gone, or not ours to look at.
    """
    return _unsupported(_read(f"/proc/{pid}/auxv"))


def _unsupported(auxv: bytes) -> str:
    if platform.machine() != ARCHITECTURE:
        return f"freeze needs x86-64; {platform.machine()} is not supported yet"
    if not _is_64_bit(auxv):
        return "freeze needs x86-64; a 32-bit process is not supported yet"
    return ""


def _begun(known: tuple[ThreadBefore, ...], phases: Phases) -> FreezeRecord:
    return FreezeRecord(
        architecture=ARCHITECTURE,
        page_size=PAGE,
        frozen_at_ns=time.monotonic_ns(),
        stops=(),
        threads=tuple(
            FrozenThread(tid=thread.tid, comm=thread.comm, how="absent", why="not reached") for thread in known
        ),
        left_out=(),
        copied_bytes=0,
        core_bytes=0,
        phases_ms=phases.ms,
        notes=("begun, and not ended: reading the memory map may have hung",),
    )


def _write_core(scene: Scene, taken: MemorySnapshot, notes: core_writer.Notes) -> int:
    path = scene.staging / layout.CORE
    return core_writer.write(path, notes, taken.mappings, taken.chunks, fill=True, written=taken.release)


def _first(scene: Scene) -> Core | None:
    """Return the first snapshot's core, None where there was none: then the second stands for itself."""
    try:
        return Core(scene.staging / layout.CORE)
    except CoreError:
        return None


def _write_delta(into: int, taken: MemorySnapshot, notes: core_writer.Notes, first: Core | None) -> int:
    if first is None:
        return core_writer.write(into, notes, taken.mappings, taken.chunks, fill=True, written=taken.release)
    whole = [want.mapping for want in taken.choice.wanted]
    chunks: list[Chunk] = [
        *core_delta.changed(taken.chunks, first),
        *core_delta.vanished(whole, taken.present, first),
    ]
    return core_writer.write(into, notes, taken.mappings, chunks, fill=False)


def _summary(taken: MemorySnapshot) -> str:
    stopped = sum(thread.how == "stopped" for thread in taken.frozen_threads)
    walked = sum(thread.how == "walked" for thread in taken.frozen_threads)
    unstopped = sum(thread.how == "from-proc" for thread in taken.frozen_threads)
    words = [
        f"{stopped} thread{'s' * (stopped != 1)} stopped for {taken.stop_ns / 1e6:.1f} ms"
        if stopped
        else "no thread stopped"
    ]
    if walked:
        words.append(f"{walked} stood still by themselves")
    if unstopped:
        words.append(f"{unstopped} read without a stop")
    return "; ".join((*words, *taken.cut.notes))


@contextmanager
def _opened(scene: Scene) -> Iterator[MappedProcess]:
    """Hold the process's memory open, and all of its /proc: should it end, its number may come to mean another one.

    Raises:
        Gone: it has ended, or was another program at the end of the block: what was copied may be that one's.
    """
    if not is_alive(scene.target):
        raise ProcessGone(f"process {scene.target.pid} has ended")
    with held(scene.target) as proc, opened_memory(proc.pid, proc.path) as process:
        yield process
        must_be_the_same(proc, scene.target)


def _is_64_bit(auxv: bytes) -> bool:
    """Return whether the kernel told the program so at its start; a look at its file could hang on storage."""
    words = dict(struct.iter_unpack("<QQ", auxv[: len(auxv) & -16]))
    return words.get(AT_PHENT) == PHENT_64


def _arguments(process: QemuProcess) -> bytes:
    if isinstance(process.arguments, Unanswered):
        return b""
    return " ".join(process.arguments).strip().encode("utf-8", "surrogateescape")


def _yama() -> str:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as stream:
            return f"yama ptrace_scope={stream.read().strip()}"
    except OSError:
        return "yama is not in this kernel"


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()
