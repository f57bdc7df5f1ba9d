"""Makes a bundle with a diagnosis of what others took: pasted backtraces, a core, logs, a report of the host."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import hold, open_folder
from autopsy.bundle.seal import Sealed, seal_in
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import ExaminationFailed, NotStored, UsageError
from autopsy.examine.boxed import examine_boxed
from autopsy.examine.core.debuginfod import fetch
from autopsy.examine.core.inputs import Frozen
from autopsy.examine.run import examine_core
from autopsy.files import private
from autopsy.files.scratch_place import scratch_place
from autopsy.incoming.boxed import read_boxed
from autopsy.incoming.bundle import Given, Typed, lay_out, write_manifest
from autopsy.incoming.stored import stored
from autopsy.linux import clocks, regular
from autopsy.report.boxed import in_box
from autopsy.report.store import Answers, answer
from autopsy.store import place as store

SECONDS = 120.0  # nobody's VM waits for this examination
MOST_PIPED = 256 << 20  # bytes of what comes from a pipe
MOST_OF_FOLDER = 1 << 30  # bytes of a folder's files together
MOST_OF_FILE = 16 << 20  # bytes of one of them: what is larger is a core, or a log that is read by itself
MOST_LARGE = 8
WANTED = (
    "a backtrace of gdb, lldb, pstack, eu-stack, coredumpctl or ABRT, a core of QEMU (also compressed), its command "
    "line or log, a domain's XML or `qm config`, answers of its monitor (QMP, or `info block` and the like), a kernel "
    "log with hung or blocked tasks, /proc/PID/stack, a folder or archive with such files"
)


@dataclass(frozen=True, slots=True)
class ImportedBundle:
    """What became of an import; `source` says what each file was."""

    sealed: Sealed
    report: Path | None
    diagnosis: Diagnosis
    source: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What was typed: the files, where the bundle goes, which VM is meant, and where a core's symbols are.

    Without a place the bundle goes to the store.
    """

    files: tuple[Path, ...]
    place: Path | None = None
    name: str = ""
    debug_files: tuple[Path, ...] = ()
    debuginfod: str = ""
    words: tuple[str, ...] = ()


def import_evidence(wish: ImportOptions) -> ImportedBundle:
    """Read the files, lay them out as a bundle, examine a core among them, diagnose, render and seal.

    Raises:
        UsageError: a file is not there, or nothing in any of them is of use.
        NotStored: the bundle could not be written.
    """
    place = _place(wish.place)
    for file in wish.debug_files:
        if not file.is_file():
            raise UsageError(str(file), "there is no such file", remedy="give QEMU's debug file or unstripped binary")
    with _workshop() as (folder, scratch), _opened(wish.files, scratch) as given:
        with private.begin(scratch / layout.CORE) as core:
            material = read_boxed([file.descriptor for file in given], core.fileno(), wish.name)
        source = tuple(f"{file.name}: {seen.what}" for file, seen in zip(given, material.seen, strict=True))
        if not any(seen.of_use for seen in material.seen):
            raise UsageError(
                "import", f"nothing of a wedged QEMU is in it: {'; '.join(source)}", remedy=f"looked for: {WANTED}"
            )
        laid = lay_out(folder, given, material, stored(material.paste), Typed(clocks.now(), wish.words))
        manifest = laid.manifest
        if laid.core:
            manifest = _examined(folder, scratch, manifest, wish)
        answers = _answered(folder)
        notes = [*manifest.notes]
        if answers.unrendered:
            notes.append(f"no report could be made: {answers.unrendered}; `autopsy report BUNDLE` tries again")
            manifest = msgspec.structs.replace(manifest, notes=tuple(notes))
        sealed = seal_in(
            place.absolute(),
            layout.name_of(manifest.target.name, manifest.began.utc),
            folder,
            manifest,
            frozenset(),
        )
        return ImportedBundle(sealed, _beside(folder, sealed), answers.diagnosis, source, tuple(notes))


def _place(named: Path | None) -> Path:
    """Return where the bundle goes; the store is made where it is missing.

    Raises:
        UsageError: the folder that was named is not there.
        NotStored: there can be no store.
    """
    if named is None:
        try:
            store.provide(store.store_path())
        except OSError as error:
            remedy = "give a folder that can be written to: --out DIR"
            raise NotStored(str(store.store_path()), error.strerror or str(error), remedy=remedy) from error
        return store.store_path()
    if not named.is_dir():
        raise UsageError(str(named), "there is no such folder", remedy="give --out a folder that is there")
    return named


def _examined(folder: Path, scratch: Path, manifest: Manifest, wish: ImportOptions) -> Manifest:
    """Examine the core as one of our own."""
    core = scratch / layout.CORE
    with private.new(folder / layout.CORE) as copy, open(regular.open_regular(core), "rb") as taken:
        _copy_sparse(taken.fileno(), copy.fileno())
    core.unlink()
    work = scratch / "examine"
    frozen = Frozen(
        core=folder / layout.CORE,
        read=lambda name: open_folder(folder).read(name),
        write=lambda file, data: private.store_below(folder, layout.evidence(layout.GDB_THREADS, file), data),
        scratch=work,
        debug_files=wish.debug_files,
        fetch=partial(fetch, wish.debuginfod, scratch),
        seconds=SECONDS,
    )
    try:
        note, outcome = examine_boxed(frozen, examine_core), "Collected"
    except ExaminationFailed as error:
        note, outcome = f"{error}", "Failed"
    steps = tuple(
        msgspec.structs.replace(step, outcome=outcome, why=note)
        if step.name == layout.GDB_THREADS
        else msgspec.structs.replace(step, outcome="Collected", why="the core that was imported")
        if step.name == layout.FREEZE
        else step
        for step in manifest.steps
    )
    changed = msgspec.structs.replace(manifest, steps=steps, notes=(*manifest.notes, f"the core: {note}"))
    write_manifest(folder, changed)
    return changed


def _copy_sparse(source: int, destination: int) -> None:
    """Copy a file's bytes and leave its holes holes."""
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(destination, size)
    with contextlib.suppress(OSError):  # nothing but a hole is left
        while at < size:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
            while at < end:
                at += os.pwrite(destination, os.pread(source, min(1 << 20, end - at), at), at)


@contextlib.contextmanager
def _workshop() -> Iterator[tuple[Path, Path]]:
    """Yield the bundle's folder and a scratch folder, both ours alone and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="autopsy-", dir=scratch_place()) as top:
        folder, scratch = Path(top, "bundle"), Path(top, "scratch")
        os.close(private.make(folder))
        os.close(private.make(scratch))
        yield folder, scratch


@contextlib.contextmanager
def _opened(files: Sequence[Path], scratch: Path) -> Iterator[list[Given]]:
    """Open the files; `-` is what a pipe holds."""
    with contextlib.ExitStack() as stack:
        given: list[Given] = []
        for file in files:
            inside = (
                _of_folder(file, scratch / f"folder-{private.token()}")
                if file.is_dir()
                else [Given("stdin" if str(file) == "-" else file.name, _open(file, scratch))]
            )
            for opened in inside:
                stack.callback(os.close, opened.descriptor)
            given += inside
        yield given


def _open(file: Path, scratch: Path) -> int:
    try:
        if str(file) == "-":
            return _spooled(0, scratch / "stdin")
        if stat.S_ISFIFO(os.stat(file).st_mode):  # `<(gdb …)` of a shell
            with open(file, "rb") as pipe:
                return _spooled(pipe.fileno(), scratch / f"pipe-{private.token()}")
        return regular.open_regular(file)
    except OSError as error:
        raise UsageError(str(file), f"cannot be read: {error.strerror}", remedy="check the path") from error


def _of_folder(folder: Path, path: Path) -> list[Given]:
    """Return an archive of ours with a folder's files, which is read as a host's report is, and the large ones."""
    left = MOST_OF_FOLDER
    given: list[Given] = []
    with private.new(path) as copy, tarfile.open(fileobj=copy, mode="w|") as archive:
        for parent, _, files, _ in os.fwalk(folder, follow_symlinks=False):
            for file in sorted(files):
                with contextlib.suppress(OSError):
                    descriptor = regular.open_regular(Path(parent, file))
                    size = os.fstat(descriptor).st_size
                    if size > MOST_OF_FILE and len(given) < MOST_LARGE:
                        given.append(Given(file, descriptor))
                        continue
                    if size <= min(left, MOST_OF_FILE):
                        _add(archive, file, os.pread(descriptor, size, 0))
                        left -= size
                    os.close(descriptor)
    return [Given(folder.name, os.open(path, os.O_RDONLY | os.O_CLOEXEC)), *given]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _spooled(source: int, path: Path) -> int:
    """Return a descriptor of a file of ours that holds what came through a pipe, as much as anybody reads of it."""
    with private.new(path) as copy:
        left = MOST_PIPED
        while left and (data := os.read(source, min(1 << 20, left))):
            copy.write(data)
            left -= len(data)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _answered(folder: Path) -> Answers:
    """Have the evidence diagnosed and rendered by a process that can do nothing else, and store what it says."""
    held = hold(folder)

    def hear(name: str, data: bytes) -> bytes:
        if name in {layout.DIAGNOSIS, layout.REPORT}:
            private.store(folder / name, data)
        return b""

    data = in_box(
        lambda _box, line: msgspec.json.encode(answer(held.read(), line.tell)),
        source="the evidence",
        seconds=SECONDS,
        hear=hear,
    )
    return msgspec.json.decode(data, type=Answers)


def _beside(folder: Path, sealed: Sealed) -> Path | None:
    copy = sealed.path.with_name(sealed.path.name.removesuffix(".tar.zst") + ".html")
    try:
        private.publish(copy, (folder / layout.REPORT).read_bytes())
    except OSError:
        return None
    return copy
