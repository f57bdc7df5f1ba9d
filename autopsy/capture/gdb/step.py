"""The step gdb.threads: the frozen core examined while the VM's own binary and libraries are still at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import zstandard

from autopsy.bundle import layout
from autopsy.capture.freeze import ring_words
from autopsy.capture.freeze import step as freeze
from autopsy.capture.gdb import attach
from autopsy.capture.gdb.mapped import mapped
from autopsy.capture.reading.procfs import ProcessEnded, held
from autopsy.capture.scratch import scratch
from autopsy.capture.step import Collected, Failed, Outcome, Scene, Skipped
from autopsy.dataclass import dataclass
from autopsy.errors import ExaminationFailed
from autopsy.examine.boxed import examine_boxed
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.run import examine_core
from autopsy.files import private
from autopsy.linux.child import ChildFailed, ChildTimedOut, collect, spawn
from autopsy.linux.tasks import behind
from autopsy.linux.tasks.behind import behind_others
from autopsy.linux.tasks.forking import Child
from autopsy.target.image import image_of

BINARY_LEVEL = 3  # 20 MB of QEMU become 6 MB in a tenth of a second
MOST_BINARY = 256 << 20  # a QEMU with all its debug information is 73 MB large
ROOM_FOR = 4  # binaries of this size: the rest of the evidence needs the room more
SPARE_SECONDS = 1.0  # for what was found to be written before the step's deadline


class TooLarge(Exception):
    """The binary is larger than any QEMU is, or than there is room for."""


def examine_stored_core(scene: Scene) -> Outcome:
    """Examine the core. Nothing is asked of the VM: only its files are opened."""
    core = scene.staging / layout.CORE
    if not core.exists():
        return _without_core(scene)
    words = _RingWords(scene)
    try:
        with (
            scratch(scene) as folder,
            frozen(scene, core, folder) as given,
            behind_others(wanted=scene.behind),
        ):
            note = examine_boxed(replace(given, write=words.write), examine_core)
    except ExaminationFailed as error:
        _store_binary(scene)  # whoever examines the core elsewhere needs it all the more
        return Failed(f"{error}: {error.remedy}")
    finally:
        words.wait()
    kept = _store_binary(scene)
    return Collected("; ".join(filter(None, (note, kept))))


@dataclass(slots=True)
class _RingWords:
    """Has the rings' words read once it is known where they lie, in a child: what belongs to the VM may not answer.

    The second look, which may be begun beside this step, waits for them: they are to be of before it.
    """

    scene: Scene
    child: Child | None = None

    def write(self, file: str, data: bytes) -> None:
        """Store one file, and begin where it is the one that tells."""
        self.scene.write(file, data)
        if file == layout.VIRTQUEUES and self.child is None:
            with suppress(ChildFailed):
                self.child = spawn(self._read)

    def _read(self) -> bytes:
        behind.step_forward()  # it takes the lock of the VM's memory map
        ring_words.collect_ring_words(self.scene)
        return b""

    def wait(self) -> None:
        """Wait until they are stored."""
        if self.child is not None:
            with suppress(ChildTimedOut, ChildFailed):
                collect(self.child, self.scene.deadline.left())


def _without_core(scene: Scene) -> Outcome:
    if not scene.options.live_gdb:
        return Skipped("there is no core: see freeze")
    if not freeze.unsupported(scene.target.pid):
        return Skipped("there is no core: see freeze. --live-gdb is for what cannot be frozen on any day")
    return attach.attach_gdb(scene)


def _store_binary(scene: Scene) -> str:
    """Keep QEMU's binary in the bundle where nobody could find it later, and say so."""
    options = scene.options
    if not (options.binary and options.core) or not (why := _lost_with_the_process(scene)):
        return ""
    try:
        with held(scene.target) as process, open(image_of(process.pid).place, "rb") as binary:
            _pack_binary(binary, scene.staging)
    except (OSError, ProcessEnded, TooLarge) as error:
        return f"the binary, which {why}, could not be kept: {getattr(error, 'strerror', None) or error}"
    return f"the binary, which {why}, is kept as {layout.BINARY}"


def _pack_binary(binary: BinaryIO, staging: Path) -> None:
    """Store a binary whose owner chose its size, where the host's memory has room for it several times.

    Raises:
        TooLarge: it has not; the capture goes on without it.
        OSError: it cannot be written whole.
    """
    size = os.fstat(binary.fileno()).st_size
    there = os.statvfs(staging)
    if size > min(MOST_BINARY, there.f_bavail * there.f_frsize // ROOM_FOR):
        raise TooLarge(f"it is {size >> 20} MB large")
    with private.held(staging) as folder, private.replacing(folder, layout.BINARY) as stream:
        # As long as it was, should it grow meanwhile.
        zstandard.ZstdCompressor(level=BINARY_LEVEL).copy_stream(_Bounded(binary, size), stream)  # type: ignore[arg-type]  # only read() is used


@dataclass(slots=True)
class _Bounded:
    """A file of so many bytes at most."""

    stream: BinaryIO
    left: int

    def read(self, size: int) -> bytes:
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def _lost_with_the_process(scene: Scene) -> str:
    """Return why its path leads nobody to the binary once the process is gone, empty if it does."""
    record, process = scene.target.record, f"/proc/{scene.target.pid}"
    if record.exe_deleted:
        return "was deleted or replaced"
    try:
        if (
            os.readlink(f"{process}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
            and os.readlink(f"{process}/root") == "/"
        ):
            return ""
        here, there = os.stat(record.exe), os.stat(image_of(record.pid).place)
    except OSError:
        return "is not to be found by its path"
    return "" if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else "is another at its path"


@contextmanager
def frozen(scene: Scene, core: Path, scratch: Path, second_core: int | None = None) -> Iterator[Frozen]:
    """Yield what the examination is given while the VM is alive; what a step beside it ends with is waited for."""
    found_beside = layout.evidence(layout.GDB_THREADS, "")
    found_first = layout.evidence(layout.GDB_THREADS, layout.MODULES)
    later = tuple(layout.evidence(step, "") for step in layout.STEPS[layout.STEPS.index(scene.step) + 1 :])

    def read(path: str) -> bytes:
        if path.startswith(later):  # it may be at work beside us
            return b""
        if path.startswith(found_beside) and path != found_first:
            scene.wait_for_other()
        try:
            return (scene.staging / path).read_bytes()
        except OSError:
            return b""

    with mapped(scene.target.pid, scene.earlier(layout.WITNESS, layout.MAPS)) as files:
        yield Frozen(
            core=core,
            read=read,
            write=scene.write,
            scratch=scratch,
            second_core=second_core,
            mapped=files,
            seconds=max(1.0, scene.deadline.left() - SPARE_SECONDS),
            without_gdb=scene.thinned,
        )
