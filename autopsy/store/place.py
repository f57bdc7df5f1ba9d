"""Where the store is, and how it is made: private, and without any folder of the system's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from autopsy.files import private

NAME = "autopsy"
FOR_ROOT = Path("/var/lib") / NAME
EXPENDABLE = "expendable"  # what nobody asked to keep, such as drills: it goes first


def store_path() -> Path:
    """Return the store of whoever runs this, whether or not it is there.

    systemd names it to a unit that has `StateDirectory=autopsy`; another unit's state folder is not taken for it.
    """
    named = os.environ.get("STATE_DIRECTORY", "")
    if named.startswith("/") and Path(named).name == NAME:
        return Path(named)
    if os.geteuid() == 0:
        return FOR_ROOT
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / NAME


def expendable_path() -> Path:
    """Return the folder of the store for what may be thrown away when room is short."""
    return store_path() / EXPENDABLE


def is_of_store(path: Path) -> bool:
    """Return whether a path is the store, or its folder for what may be thrown away."""
    return path in (store_path(), expendable_path())


def provide(path: Path) -> None:
    """Make the store, or its folder for what may be thrown away, where it is missing.

    Root makes nothing above it: what is missing there is the system's. A user's own folders are made as they are
    needed, below one that is theirs.

    Raises:
        NotPrivate: what is there, or the folder that it would be made in, is somebody else's.
        OSError: as mkdir(2) and open(2) give it.
    """
    store = store_path()
    if not store.is_dir():
        _make(store)
    held = private.hold(store)
    try:
        if path != store:
            os.close(private.enter(held, path.name))
    finally:
        os.close(held)


def _make(store: Path) -> None:
    above = next(parent for parent in store.parents if parent.is_dir())
    if os.geteuid() == 0 and above != store.parent:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(store.parent))
    folder = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise private.NotPrivate(errno.EPERM, "another user's", str(above))
        os.close(private.enter(folder, str(store.relative_to(above))))
    finally:
        os.close(folder)
