"""What lies in the store, told by names, sizes and times alone: no bundle is opened."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.store.place import EXPENDABLE, store_path

BUNDLE = ".tar.zst"
BESIDE = (BUNDLE, ".html", f"{BUNDLE}.sig", f"{BUNDLE}.kill.json")
STAMP = re.compile(r"autopsy-(?P<vm>.+)-(?P<when>[0-9]{8}T[0-9]{6})Z(?:-[0-9a-f]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBundle:
    """One bundle of the store with what stands beside it; `when` is the capture's moment, in seconds since 1970.

    `size` is of all its files. What is `expendable` may be thrown away when room is short.
    """

    name: str
    vm: str
    when: float
    size: int
    folder: Path
    files: tuple[str, ...]
    expendable: bool = False

    @property
    def bundle(self) -> Path:
        """Return the bundle's path."""
        return self.folder / f"{self.name}{BUNDLE}"

    @property
    def report(self) -> Path | None:
        """Return the path of the report beside the bundle, None where there is none."""
        name = f"{self.name}.html"
        return self.folder / name if name in self.files else None


def entries(store: Path | None = None) -> tuple[StoredBundle, ...]:
    """Return what the store holds, the oldest first; nothing where there is no store.

    Raises:
        NotPrivate: the store is not ours.
    """
    top = store or store_path()
    bundles = [*_in(top, expendable=False), *_in(top / EXPENDABLE, expendable=True)]
    return tuple(sorted(bundles, key=lambda bundle: (bundle.when, bundle.name)))


def _in(folder: Path, *, expendable: bool) -> Iterator[StoredBundle]:
    try:
        held = private.hold(folder)
    except FileNotFoundError:
        return
    try:
        files = {name: status for name in os.listdir(held) if (status := _plain(held, name)) is not None}
    finally:
        os.close(held)
    for bundle, status in files.items():
        if not bundle.endswith(BUNDLE) or bundle.startswith("."):
            continue
        name = bundle.removesuffix(BUNDLE)
        mine = tuple(file for end in BESIDE if (file := f"{name}{end}") in files)
        stamp = STAMP.fullmatch(name)
        yield StoredBundle(
            name=name,
            vm=stamp["vm"] if stamp else name,
            when=_moment(stamp["when"]) if stamp else status.st_mtime,
            size=sum(files[file].st_size for file in mine),
            folder=folder,
            files=mine,
            expendable=expendable,
        )


def _plain(folder: int, name: str) -> os.stat_result | None:
    """Return what a file of ours is like; None for whatever else lies there."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            return status
    return None


def _moment(stamp: str) -> float:
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
