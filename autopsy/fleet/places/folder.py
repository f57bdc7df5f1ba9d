"""A folder as a place."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autopsy.dataclass import dataclass
from autopsy.files import private
from autopsy.files.plain import NotPlain, open_plain
from autopsy.fleet.places.place import PlaceFailed, PlaceRefused, StoredFile

AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """Files below one folder. A file that is being written is hidden, and gets its name once it is on the disk."""

    root: Path

    def put_new(self, key: str, file: Path) -> bool:
        """Put a file there, whole or not at all; see `Place`."""
        path = self.root / key
        with self._told(path):
            private.provide(path.parent)
            with private.anybodys(path.parent) as folder:
                half = f".{path.name}.{private.token()}{private.HALF}"
                try:
                    with open(open_plain(file), "rb") as source, private.new(half, below=folder) as stream:
                        shutil.copyfileobj(source, stream, AT_ONCE)
                        stream.flush()
                        os.fsync(stream.fileno())
                    private.rename_new(folder, half, path.name)
                except FileExistsError:
                    return False
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(half, dir_fd=folder)
                os.fsync(folder)
        return True

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield the files below a prefix; hidden ones and links are none."""
        with self._told(self.root):
            yield from self._below(self.root / prefix, prefix.rstrip("/"))

    def take(self, key: str, destination: Path) -> None:
        """Copy a file to a new one; see `Place`."""
        with (
            self._told(self.root / key),
            open(open_plain(self.root / key), "rb") as source,
            private.new(destination) as stream,
        ):
            shutil.copyfileobj(source, stream, AT_ONCE)

    def remove(self, key: str) -> None:
        """Remove a file; see `Place`."""
        with self._told(self.root / key):
            (self.root / key).unlink(missing_ok=True)

    def _below(self, folder: Path, key: str) -> Iterator[StoredFile]:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                name = f"{key}/{entry.name}" if key else entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(folder / entry.name, name)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield StoredFile(name, status.st_size, str(status.st_mtime_ns), status.st_mtime)

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except NotPlain as error:
            raise PlaceRefused(str(path), "is no plain file", remedy="check the place") from error
        except (PermissionError, NotADirectoryError) as error:
            raise PlaceRefused(
                str(path), error.strerror or "refused", remedy="give a folder that you may write to"
            ) from error
        except OSError as error:
            raise PlaceFailed(
                str(path), error.strerror or "failed", remedy="make room, or see to its file system"
            ) from error
