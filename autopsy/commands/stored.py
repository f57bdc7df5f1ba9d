"""What the store's captures say: their verdicts, and what became of their VMs, as they were sealed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.bundle.archive import members
from autopsy.bundle.manifest import Manifest
from autopsy.bundle.reader import decode_manifest, open_folder
from autopsy.dataclass import dataclass
from autopsy.diagnose.diagnosis import Diagnosis
from autopsy.errors import AutopsyError, DamagedBundle
from autopsy.files.plain import NotPlain, open_plain
from autopsy.kill.audit_log import KillNote, note_path
from autopsy.linux import clocks
from autopsy.report.boxed import SECONDS, in_box
from autopsy.report.store import diagnosis_of
from autopsy.store.choose import LAST, chosen
from autopsy.store.entries import BUNDLE, StoredBundle, entries
from autopsy.target import identity

AT_ONCE = 200  # descriptors that are held
READ = os.O_RDONLY | os.O_CLOEXEC
MOST_OF_A_NOTE = 1 << 20


class SealedWords(msgspec.Struct, frozen=True, kw_only=True):
    """What one bundle says, as it was sealed. `trouble` says why it says nothing; then all else is empty."""

    manifest: Manifest | None = None
    diagnosis: Diagnosis | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBundle:
    """A bundle, what it says, and how its VM was killed: None where it was not, or nobody wrote it down.

    Where `is_here` is false, what was advised then could meet another process by now.
    """

    bundle: Path
    report: Path | None
    size: int
    words: SealedWords
    kill: KillNote | None = None
    entry: StoredBundle | None = None

    @property
    def is_here(self) -> bool:
        """Tell whether the process that was captured is still there."""
        manifest = self.words.manifest
        if manifest is None or manifest.host.boot_id != clocks.host().boot_id:
            return False
        try:
            return identity.stat_of(f"/proc/{manifest.target.pid}").start_ticks == manifest.target.start_ticks
        except (OSError, ValueError, IndexError):
            return False


def listed() -> tuple[ShownBundle, ...]:
    """Return the store's captures, the oldest first.

    Raises:
        OSError: the store is not ours.
    """
    stored = entries()
    answers: list[SealedWords] = []
    for begin in range(0, len(stored), AT_ONCE):
        answers += _read([entry.bundle for entry in stored[begin : begin + AT_ONCE]])
    return tuple(_of_store(entry, what) for entry, what in zip(stored, answers, strict=True))


def named(word: str) -> ShownBundle:
    """Return the capture that `last`, a name of the store, or a bundle's path means.

    Raises:
        UsageError: it means none, or several.
        DamagedBundle: it cannot be read.
    """
    path = Path(word)
    if word != LAST and path.exists():
        answer = _with_verdict(path, _read([path])[0])
        _must_speak(path, answer)
        report = path.with_name(f"{path.name.removesuffix(BUNDLE)}.html")
        size = path.stat().st_size
        return ShownBundle(
            bundle=path,
            report=report if report != path and report.is_file() else None,
            size=size,
            words=answer,
            kill=_kill_of(path),
        )
    entry = chosen(word, entries())
    answer = _with_verdict(entry.bundle, _read([entry.bundle])[0])
    _must_speak(entry.bundle, answer)
    return _of_store(entry, answer)


def _with_verdict(path: Path, answer: SealedWords) -> SealedWords:
    """Diagnose a bundle that holds no verdict that this version reads."""
    if answer.trouble or answer.diagnosis is not None:
        return answer
    return msgspec.structs.replace(answer, diagnosis=diagnosis_of(path))


def _must_speak(path: Path, answer: SealedWords) -> None:
    if answer.trouble:
        raise DamagedBundle(str(path), answer.trouble, remedy="`autopsy verify` tells whether it is whole")


def _of_store(entry: StoredBundle, answer: SealedWords) -> ShownBundle:
    return ShownBundle(
        bundle=entry.bundle,
        report=entry.report,
        size=entry.size,
        words=answer,
        kill=_kill_of(entry.bundle),
        entry=entry,
    )


def _kill_of(bundle: Path) -> KillNote | None:
    try:
        with open(open_plain(note_path(bundle)), "rb") as stream:
            return msgspec.json.decode(stream.read(MOST_OF_A_NOTE), type=KillNote)
    except (OSError, NotPlain, msgspec.DecodeError):
        return None


def _read(paths: Sequence[Path]) -> list[SealedWords]:
    """Read manifest and diagnosis of each, in a process that can do nothing else; nothing behind them is unpacked."""
    held: list[tuple[Path, int]] = []
    try:
        held.extend((path, -1 if path.is_dir() else os.open(path, READ)) for path in paths)
        folders = {path: open_folder(path) for path, descriptor in held if descriptor < 0}

        def work() -> bytes:
            answers = [
                _speak(path, folders[path].manifest, folders[path].read(layout.DIAGNOSIS))
                if descriptor < 0
                else _first_words(path, descriptor)
                for path, descriptor in held
            ]
            return msgspec.json.encode(answers)

        data = in_box(
            lambda _box, _line: work(),
            source="the store",
            seconds=SECONDS,
            keep=tuple(descriptor for _, descriptor in held if descriptor >= 0),
        )
        return msgspec.json.decode(data, type=list[SealedWords])
    finally:
        for _, descriptor in held:
            if descriptor >= 0:
                os.close(descriptor)


def _first_words(path: Path, descriptor: int) -> SealedWords:
    manifest: Manifest | None = None
    try:
        for member in members(path, descriptor):
            if member.name == layout.MANIFEST:
                manifest = decode_manifest(path, b"".join(member.parts()))
            elif member.name == layout.DIAGNOSIS:
                return _speak(path, manifest, b"".join(member.parts()))
            elif member.name.startswith("evidence/"):
                break  # a diagnosis would have come before
    except AutopsyError as error:
        return SealedWords(trouble=error.cause)
    return SealedWords(manifest=manifest, trouble="" if manifest else f"holds no {layout.MANIFEST}")


def _speak(path: Path, manifest: Manifest | None, diagnosis: bytes) -> SealedWords:
    if manifest is None:
        return SealedWords(trouble=f"{path.name} does not begin with its {layout.MANIFEST}")
    try:
        judged = msgspec.json.decode(diagnosis, type=Diagnosis) if diagnosis else None
    except (msgspec.DecodeError, RecursionError):
        judged = None  # of another version; `autopsy analyze` makes it anew
    return SealedWords(manifest=msgspec.structs.replace(manifest, files=()), diagnosis=judged)
