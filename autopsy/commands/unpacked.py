"""Unpacks a bundle whose archive is read in a process that can do nothing else; what comes out is written by us."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import field
from pathlib import Path
from typing import BinaryIO

from autopsy.bundle.archive import MOST_BYTES, MOST_MEMBERS, members, safe_name
from autopsy.bundle.reader import OpenedBundle, hold
from autopsy.dataclass import dataclass
from autopsy.errors import DamagedBundle
from autopsy.files import private
from autopsy.linux.confine.confined import AnswerPipe
from autopsy.report.boxed import SECONDS, in_box

FRAMES = 1 << 20  # bytes of names, and of what stands around each part


def unpack(path: Path, folder: Path) -> bool:
    """Write an archive's files below a folder of ours; return whether it is one: a folder has nothing to unpack.

    Raises:
        AutopsyError: as hold() and Held.read() raise it.
    """
    held = hold(path)
    if held.descriptor is None:
        return False
    try:
        with ExitStack() as stack:
            written = _Written(path, folder, stack)
            in_box(
                lambda _box, line: _tell(held, line),
                source=str(path),
                seconds=SECONDS,
                keep=(held.descriptor,),
                hear=written.hear,
                most=MOST_BYTES + FRAMES,
            )
    finally:
        os.close(held.descriptor)
    return True


def _tell(held: OpenedBundle, line: AnswerPipe) -> bytes:
    """Say each file's name and then its bytes, once the whole is known for a bundle."""
    held.read()
    for member in members(held.path, held.descriptor):
        line.tell("file", member.name.encode())
        for part in member.parts():
            line.tell("part", part)
    return b""


@dataclass(slots=True)
class _Written:
    """What the one inside says of files, written as it comes: plain names, each once, no more than a bundle has."""

    path: Path
    folder: Path
    stack: ExitStack
    stream: BinaryIO | None = None
    seen: set[str] = field(default_factory=set)

    def hear(self, kind: str, data: bytes) -> bytes:
        if kind == "file":
            self._next(data)
        elif kind == "part" and self.stream is not None:
            self.stream.write(data)
        return b""

    def _next(self, data: bytes) -> None:
        self.stack.close()
        try:
            name = safe_name(data.decode())
        except ValueError as error:
            raise self._lie(str(error)) from error
        if name in self.seen or len(self.seen) >= MOST_MEMBERS:
            raise self._lie("more files than it holds")
        self.seen.add(name)
        try:
            self.stream = self.stack.enter_context(private.new_below(self.folder, name))
        except (FileExistsError, NotADirectoryError) as error:
            raise self._lie(f"{name} is there twice") from error

    def _lie(self, what: str) -> DamagedBundle:
        return DamagedBundle(str(self.path), f"what read it told of {what}", remedy="do not trust it")
