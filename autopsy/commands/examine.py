"""Examines a stored bundle again, with better symbols, on any machine, long after the VM has gone."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.archive import safe_name
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import Bundle, open_folder
from autopsy.bundle.seal import Sealed, seal
from autopsy.commands.unpacked import unpack
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import ExaminationFailed, NotStored, UsageError
from autopsy.examine.boxed import examine_boxed
from autopsy.examine.core.debuginfod import fetch
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.gdb.interactive import converse
from autopsy.examine.run import examine_core
from autopsy.examine.second_exposure import examine_again
from autopsy.files import private
from autopsy.files.plain import NotPlain
from autopsy.files.scratch_place import scratch_place
from autopsy.report.store import write_answers

SECONDS = 120.0  # nobody's VM waits for this examination


@dataclass(frozen=True, slots=True)
class Examined:
    """A new bundle: the old one's evidence with a new examination, diagnosis and report."""

    sealed: Sealed
    diagnosis: Diagnosis
    note: str


def examine_bundle(bundle: Path, *, debug_files: tuple[Path, ...], debuginfod: str, place: Path | None) -> Examined:
    """Examine a bundle's core again and seal the result beside the bundle, which stays as it was sealed.

    Raises:
        UsageError: the bundle holds no core, or a debug file is not there.
        ExaminationFailed: the core cannot be worked on.
        NotStored: the new bundle could not be written.
    """
    for file in debug_files:
        if not file.is_file():
            raise UsageError(str(file), "there is no such file", remedy="give QEMU's debug file or unstripped binary")
    destination = _beside(bundle, place)
    with _unpacked(bundle) as folder:
        note = _examine(folder, debug_files, debuginfod)
        answers = write_answers(folder)
        manifest = open_folder(folder).manifest
        line = f"examined again: {note}"
        if answers.unrendered:
            line += f"; no report could be made of it: {answers.unrendered}"
        changed = msgspec.structs.replace(manifest, files=(), notes=(*manifest.notes, line))
        return Examined(_sealed(folder, destination, changed), answers.diagnosis, line)


def _sealed(folder: Path, destination: Path, manifest: Manifest) -> Sealed:
    """Seal the new bundle; where that fails nothing is lost, for the old one is as it was.

    Raises:
        NotStored: it could not be written.
    """
    try:
        return seal(folder, destination, manifest)
    except NotStored as error:
        raise NotStored(error.thing, error.cause, remedy="the bundle is as it was; give a folder: --out DIR") from error


def _examine(folder: Path, debug_files: tuple[Path, ...], debuginfod: str) -> str:
    with (
        tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as scratch,
        tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as fetched,
    ):
        frozen = partial(
            Frozen,
            core=_core(folder),
            read=partial(_read, folder),
            scratch=Path(scratch),
            debug_files=debug_files,
            fetch=partial(fetch, debuginfod, Path(fetched)),
            seconds=SECONDS,
        )
        second_core = folder / layout.evidence(layout.SECOND_EXPOSURE, layout.CORE)
        first = frozen(
            write=partial(_write, folder, layout.GDB_THREADS),
            second_core=second_core if second_core.is_file() else None,
        )
        note = examine_boxed(first, examine_core)
        if second_core.is_file():
            with contextlib.suppress(ExaminationFailed):  # then what the capture itself found stays
                second = frozen(write=partial(_write, folder, layout.SECOND_EXPOSURE), second_core=second_core)
                examine_boxed(second, examine_again)
        return note


def debug(bundle: Path, debug_files: tuple[Path, ...]) -> int:
    """Run an interactive gdb on a bundle's core and return its exit code."""
    with _unpacked(bundle) as folder, tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as scratch:
        frozen = Frozen(
            core=_core(folder),
            read=partial(_read, folder),
            write=lambda file, data: None,  # noqa: ARG005 - an interactive look leaves nothing behind
            scratch=Path(scratch),
            debug_files=debug_files,
            seconds=SECONDS,
        )
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for gdb
        try:
            return int(examine_boxed(frozen, converse, at_terminal=True).partition(";")[0])
        finally:
            signal.signal(signal.SIGINT, before)


def _core(folder: Path) -> Path:
    core = folder / layout.CORE
    if not core.is_file():
        raise UsageError(
            str(folder), "holds no core to examine", remedy="it was captured with --no-core, or freeze failed"
        )
    return core


@contextlib.contextmanager
def _unpacked(bundle: Path) -> Iterator[Path]:
    """Yield a private copy of the bundle as a folder."""
    with tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as scratch:
        folder = Path(scratch, "bundle")
        os.close(private.make(folder))
        if not unpack(bundle, folder):
            _copy_plain_files(open_folder(bundle), folder)
        yield folder


def _copy_plain_files(bundle: Bundle, folder: Path) -> None:
    """Copy what a folder holds of a bundle: links in it may lead anywhere, and we are about to write beside them."""
    for name in bundle.names():
        with contextlib.suppress(ValueError, NotPlain), private.new_below(folder, safe_name(name)) as stream:
            bundle.pour(name, stream)


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            return b""
        return path.read_bytes()
    except OSError:
        return b""


def _write(folder: Path, step: str, file: str, data: bytes) -> None:
    private.store_below(folder, layout.evidence(step, file), data)


def _beside(bundle: Path, place: Path | None) -> Path:
    """Return a name that is still free for the new bundle; the folder is made where a person named it."""
    folder = (place or bundle.parent).absolute()
    if place is not None:
        private.provide(folder)
    stem = bundle.name.removesuffix(".tar.zst").removesuffix(".partial")
    names_tried = (f"{stem}-examined{number or ''}.tar.zst" for number in range(1000))
    return next(path for name in names_tried if not (path := folder / name).exists())
