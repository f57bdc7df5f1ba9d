"""Read what gdb prints for `thread apply all bt`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

import msgspec

from autopsy.bundle.records import Frame
from autopsy.dataclass import dataclass
from autopsy.examine.core.symbols import Symbols

# A thread's name, which is the guest's or QEMU's to choose, comes after its number.
HEADER = re.compile(r"Thread \d+ \((?:Thread 0x[0-9a-f]+ \()?LWP (\d{1,10})\b.*:$")
# The pc is printed for every frame (print frame-info location-and-address), save that of a signal's trampoline.
FRAME = re.compile(
    r"#\d+ +(?:0x(?P<pc>[0-9a-f]{1,16}) in )?(?P<function>.{1,4096}?) \((?:\.\.\.)?\)"
    r"(?: at (?P<file>.{1,4096}):(?P<line>\d{1,9})| from .{1,4096})?$"
)
SIGNAL_FRAME = re.compile(r"#\d+ +(?:0x([0-9a-f]{1,16}) in )?<signal handler called>$")
MORE = "(More stack frames follow...)"
STOPPED = "Backtrace stopped: "


@dataclass(slots=True)
class Block:
    """What was printed for one thread, its header included, and the frames in it; `lwp` names the thread."""

    lwp: int
    lines: list[str] = field(default_factory=list)
    frames: list[PrintedFrame] = field(default_factory=list)
    cut_short: str = ""


@dataclass(frozen=True, slots=True)
class PrintedFrame:
    """One printed frame; `function` is empty for `??`, and `pc` 0 for a signal's trampoline."""

    pc: int
    function: str
    file: str = ""
    line: int = 0


def blocks(text: str) -> Iterator[Block]:
    """Yield the threads of a backtrace in the order in which gdb printed them."""
    block: Block | None = None
    for line in text.split("\n"):
        if header := HEADER.match(line):
            if block is not None:
                yield block
            block = Block(int(header[1]), [line])
            continue
        if block is None or not line:
            continue
        block.lines.append(line)
        if printed := _printed(line):
            block.frames.append(printed)
        elif line.startswith(STOPPED):
            block.cut_short = line[len(STOPPED) :][:200]
        elif line == MORE:
            block.cut_short = "more frames follow than were asked for"
    if block is not None:
        yield block


def frames(block: Block, symbols: Symbols) -> tuple[tuple[Frame, ...], str]:
    """Return the frames, each named only by what covers its pc, and why the outer ones are left out if they are.

    Beyond a frame without unwind information (code made at run time, a file that is not at hand) gdb can only guess.
    """
    named: list[Frame] = []
    called = False
    for index, printed in enumerate(block.frames):
        outer = block.frames[index + 1] if index + 1 < len(block.frames) else None
        frame = symbols.frame(
            printed.pc, called=called, function=printed.function, file=printed.file, line=printed.line
        )
        inlined = (
            outer is not None and bool(printed.file) and outer.pc == printed.pc and outer.function != printed.function
        )
        named.append(msgspec.structs.replace(frame, inlined=True) if inlined else frame)
        if outer is not None and not symbols.can_unwind(printed.pc):
            return tuple(named), f"no unwind information at {printed.pc:#x}: gdb's outer frames are guesses"
        # The pc behind a signal's trampoline is where the signal came, not a return address; an inlined frame's is
        # the same as its caller's.
        called = called if inlined else not printed.function.startswith("<signal")
    return tuple(named), ""


def _printed(line: str) -> PrintedFrame | None:
    if match := FRAME.match(line):
        function = match["function"]
        return PrintedFrame(
            pc=int(match["pc"] or "0", 16),
            function="" if function == "??" else function,
            file=match["file"] or "",
            line=int(match["line"] or 0),
        )
    if match := SIGNAL_FRAME.match(line):
        return PrintedFrame(pc=int(match[1] or "0", 16), function="<signal handler called>")
    return None
