"""The members of a .tar.zst that may come from anybody, one after the other, within bounds."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import IO, cast

import zstandard

from autopsy.bundle import layout
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle, UsageError
from autopsy.files.plain import NotPlain, reopen

MOST_MEMBERS = 4_000
MOST_BYTES = 4 << 30  # unpacked, the cores included: a core is cut at half a GiB
MOST_IN_MEMORY = 64 << 20  # of one evidence file
MOST_ALTOGETHER = 256 << 20
LARGE = frozenset({layout.CORE, layout.BINARY, layout.evidence(layout.SECOND_EXPOSURE, layout.CORE)})
HEADER_ALLOWANCE = 1 << 20  # of tar headers between two members
MOST_WINDOW = 128 << 20  # what zstd may ask us to keep in memory

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+@-]*)*")
_REMEDY = "take the bundle from where it was captured again; `tar --zstd -tvf` shows what is in this one"


@dataclass(frozen=True, slots=True)
class _Watched:
    """A stream whose bytes somebody else is given as well."""

    stream: IO[bytes]
    watch: Callable[[bytes], object]

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.watch(data)
        return data


@dataclass(slots=True)
class _Metered:
    """A stream that stops a liar: no more bytes come out than the members announced so far account for."""

    stream: IO[bytes]
    allowance: int = HEADER_ALLOWANCE
    total: int = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.allowance -= len(data)
        self.total += len(data)
        if self.allowance < 0 or self.total > MOST_BYTES:
            raise ValueError("more bytes than its headers announce, or than any bundle holds")
        return data


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file, to be read before the next one is asked for."""

    archive: Path
    name: str
    size: int
    stream: IO[bytes]

    def parts(self) -> Iterator[bytes]:
        """Yield what is left of the file's bytes, a MiB at a time.

        Raises:
            DamagedBundle: the archive ends inside the file.
        """
        with _said_as_damage(self.archive):
            while part := self.stream.read(1 << 20):
                yield part


def safe_name(name: str) -> str:
    """Return the member's name without a leading `./`, or raise ValueError for one that could leave its folder."""
    plain = name.removeprefix("./")
    if len(plain) > 255 or not _NAME.fullmatch(plain):
        raise ValueError(f"a file name that no bundle holds: {name[:80]!r}")
    return plain


def open_archive(path: Path) -> int:
    """Open a bundle to read, and read nothing of it; whoever owns its folder may have laid a FIFO or a device there.

    Raises:
        UsageError: there is nothing at that path.
        DamagedBundle: it cannot be opened, or is no plain file.
    """
    try:
        looked_at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return reopen(looked_at, str(path))
        finally:
            os.close(looked_at)
    except FileNotFoundError:
        raise UsageError(str(path), "there is no such file", remedy="give a bundle (.tar.zst) or its folder") from None
    except NotPlain as error:
        raise DamagedBundle(str(path), "is no plain file", remedy="check the path") from error
    except OSError as error:
        raise DamagedBundle(str(path), f"cannot be read: {error.strerror}", remedy="check the path") from error


def members(
    path: Path, descriptor: int | None = None, *, watch: Callable[[bytes], object] = lambda _: None
) -> Iterator[Member]:
    """Yield the regular files of the archive in their order; with a `descriptor`, of the file that it has open.

    `watch` is given the archive's own bytes as they are read: all of them, once the last file was yielded.

    Raises:
        DamagedBundle: not a .tar.zst, cut short, lying about its sizes, or holding anything but plain files.
    """
    with _said_as_damage(path), open(open_archive(path) if descriptor is None else os.dup(descriptor), "rb") as file:
        file.seek(0)
        yield from _members(path, cast("IO[bytes]", _Watched(file, watch)))


@contextmanager
def _said_as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, OverflowError) as error:
        raise DamagedBundle(str(path), f"not a whole bundle ({error})", remedy=_REMEDY) from error
    except OSError as error:
        raise DamagedBundle(str(path), f"cannot be read: {error.strerror}", remedy="check the path") from error


@dataclass(slots=True)
class _Bounds:
    """What the members seen so far leave room for."""

    seen: set[str] = field(default_factory=set)
    small: int = 0
    whole: int = 0

    def admit(self, entry: tarfile.TarInfo) -> str:
        """Return the member's name, or raise ValueError for one that no bundle holds."""
        name = safe_name(entry.name)
        if not entry.isreg():
            raise ValueError(f"{name} is no plain file")
        if name in self.seen or len(self.seen) >= MOST_MEMBERS:
            raise ValueError(f"{name} is there twice" if name in self.seen else "too many files")
        self.seen.add(name)
        self.whole += entry.size
        if self.whole > MOST_BYTES:
            raise ValueError(f"{name} is larger than any bundle holds")
        if name not in LARGE:
            self.small += entry.size
            if entry.size > MOST_IN_MEMORY or self.small > MOST_ALTOGETHER:
                raise ValueError(f"{name} is larger than evidence can be")
        return name


def _members(path: Path, file: IO[bytes]) -> Iterator[Member]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW)
    with decompressor.stream_reader(file, read_across_frames=True) as unpacked:
        metered = _Metered(unpacked)
        bounds = _Bounds()
        with tarfile.open(fileobj=cast("IO[bytes]", metered), mode="r|", bufsize=1 << 16, encoding="utf-8") as tar:
            while True:
                metered.allowance = HEADER_ALLOWANCE
                entry = tar.next()
                if entry is None:
                    _nothing_follows(metered)
                    return
                if entry.isdir():
                    continue
                name = bounds.admit(entry)
                metered.allowance += entry.size + HEADER_ALLOWANCE
                stream = tar.extractfile(entry)
                if stream is not None:
                    member = Member(path, name, entry.size, stream)
                    yield member
                    for _ in member.parts():  # what nobody asked for is read all the same, and counted
                        pass


def _nothing_follows(metered: _Metered) -> None:
    """Read to the very end: zstd's checksum stands there, and nothing may hide behind the last file."""
    while data := metered.read(1 << 16):
        if data.strip(b"\0"):
            raise ValueError("something follows the end of the archive")
