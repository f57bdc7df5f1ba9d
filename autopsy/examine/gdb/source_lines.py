"""Name the frames of stacks that were unwound earlier, by a debug file alone: without the binary nothing unwinds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from autopsy.bundle.records import Frame
from autopsy.errors import ExaminationFailed
from autopsy.examine.core.symbols import ElfImage, Symbols
from autopsy.examine.gdb.mi import Gdb, GdbError

LINE = re.compile(r'Line (\d{1,9}) of "(.{1,4096})" (?:starts|is) at')
MOST_PLACES = 4096  # a stack has some ten, and a thousand alike have no more


class Lines:
    """What a debug file says of the frames of its module."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._places: dict[int, tuple[str, int]] = {}

    def look_up(self, stacks: Iterable[Sequence[Frame]], scratch: Path, ends_at: float) -> None:
        """Ask gdb for the source lines of these stacks' frames, as many as it can tell until `ends_at`.

        Raises ExaminationFailed when there is no gdb.
        """
        image = self._image()
        if image is None or image.debug is None:
            return
        wanted = {place for frames in stacks for place in _places(frames, image)}
        if not wanted:
            return
        link = scratch.absolute() / "debug-file"
        link.unlink(missing_ok=True)
        link.symlink_to(image.debug.path.absolute())
        with Gdb(scratch, ends_at=ends_at) as gdb:
            try:
                gdb.run(f"symbol-file {link}")
                for place in sorted(wanted)[:MOST_PLACES]:
                    answer = gdb.run(f"info line *{place - image.bias:#x}")
                    if not answer.whole:
                        break
                    if matched := LINE.match(answer.text):
                        self._places[place] = matched[2], int(matched[1])
            except (GdbError, ExaminationFailed):
                return  # what it has told is true

    def named(self, frames: Sequence[Frame]) -> tuple[Frame, ...]:
        """Return the frames with the names and lines that their module's debug file gives."""
        image = self._image()
        if image is None:
            return tuple(frames)
        named = []
        for index, frame in enumerate(frames):
            if frame.module != image.path or frame.line:
                named.append(frame)
                continue
            file, line = self._places.get(frame.pc - _called(frames, index), ("", 0))
            now = self._symbols.frame(frame.pc, called=_called(frames, index), file=file, line=line)
            named.append(now if now.function else msgspec.structs.replace(frame, file=file, line=line))
        return tuple(named)

    def _image(self) -> ElfImage | None:
        """Return QEMU's image, if all that is at hand of it is its debug file."""
        main = self._symbols.main
        return main if main and main.file is None and main.debug else None


def _places(frames: Sequence[Frame], image: ElfImage) -> Iterable[int]:
    for index, frame in enumerate(frames):
        if frame.module == image.path and not frame.line:
            yield frame.pc - _called(frames, index)


def _called(frames: Sequence[Frame], index: int) -> bool:
    """Return whether the pc is a return address: that of a stack's first frame, or behind a signal's, is none."""
    return index > 0 and not frames[index - 1].function.startswith("<signal")
