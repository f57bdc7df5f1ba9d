"""Finds the stored cases below a path, which a stranger may have made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle, UsageError
from autopsy.replay.expected import Expected, encode

EXPECTED = "expected.json"
PROVENANCE = "provenance.md"
UNPACKED = "bundle"
ENDING = ".tar.zst"
DEEPEST = 8
MOST_CASES = 100_000
MOST_EXPECTED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One stored bundle. `home` is the folder that holds expected.json; a bundle of its own has none.

    Such a bundle is compared with the diagnosis that was sealed into it.
    """

    name: str
    bundle: Path
    home: Path | None


def find_cases(paths: tuple[Path, ...]) -> tuple[Case, ...]:
    """Return every case at or below the paths, in order, each once.

    Raises:
        UsageError: a path is not there, or there is nothing to replay at all.
    """
    cases: dict[Path, Case] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(str(path), "there is no such file or folder", remedy="give bundles, or folders of cases")
        for case in _at(path, path.name or str(path)):
            cases.setdefault(case.bundle, case)
            if len(cases) > MOST_CASES:
                raise UsageError(str(path), f"holds more than {MOST_CASES} cases", remedy="give a smaller folder")
    if not cases:
        raise UsageError(
            ", ".join(map(str, paths)) or "replay",
            "there is nothing to replay",
            remedy=f"give bundles ({ENDING}), unpacked ones, or folders of cases ({EXPECTED} beside a bundle)",
        )
    return tuple(cases.values())


def _at(path: Path, name: str) -> Iterator[Case]:
    if not path.is_dir():
        if path.is_file():
            yield Case(name, path, None)
        return
    yield from _below(path, name, DEEPEST)


def _below(folder: Path, name: str, depth: int) -> Iterator[Case]:
    """Yield the cases of a folder: no link is followed, and what cannot be read holds none."""
    files, folders = _entries(folder)
    if layout.MANIFEST in files:
        yield Case(name, folder, None)
        return
    bundles = [name for name in files if name.endswith(ENDING)]
    if EXPECTED in files or PROVENANCE in files:
        yield Case(name, folder / (bundles[0] if bundles else UNPACKED), folder)
        return
    for bundle in bundles:
        yield Case(f"{name}/{bundle.removesuffix(ENDING)}", folder / bundle, None)
    if depth:
        for inner in folders:
            yield from _below(folder / inner, f"{name}/{inner}", depth - 1)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of plain files and of folders, sorted; hidden ones are left out."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
    except OSError:
        return [], []
    return sorted(files), sorted(folders)


def read_expected(home: Path) -> Expected | None:
    """Return what the case must be diagnosed as; None when it does not say.

    Raises:
        DamagedBundle: expected.json is there and cannot be read.
    """
    path = home / EXPECTED
    remedy = "`--update` writes it anew"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedBundle(str(path), f"cannot be read: {error.strerror}", remedy=remedy) from error
    with open(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_EXPECTED_BYTES:
            raise DamagedBundle(str(path), "is no small plain file", remedy=remedy)
        data = stream.read(MOST_EXPECTED_BYTES)
    try:
        return msgspec.json.decode(data, type=Expected)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedBundle(str(path), str(error), remedy=remedy) from error


def write_expected(home: Path, expected: Expected) -> None:
    """Write expected.json whole or not at all; a link in its place is replaced, not followed."""
    temporary = home / f".{EXPECTED}.partial"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as stream:
        os.fchmod(descriptor, 0o644)  # it is committed beside its bundle, for whoever checks that out
        stream.write(encode(expected))
    temporary.rename(home / EXPECTED)
