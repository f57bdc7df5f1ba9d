"""Writes a look as gdb would have printed it, so that every thread can be cited by its line."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from autopsy.bundle.records import Coroutine, Frame, ThreadStack
from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.pasted import PastedDump


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text, and the look whose `line`s count in it."""

    text: str
    look: PastedDump


def render(look: PastedDump) -> Rendered:
    """Return backtrace.txt for a look: a header and the frames for each thread, then each coroutine."""
    lines: list[str] = []
    threads: list[ThreadStack] = []
    coroutines: list[Coroutine] = []
    for number, thread in enumerate(look.threads, 1):
        threads.append(msgspec.structs.replace(thread, line=len(lines) + 1))
        name = f' "{thread.comm}"' if thread.comm else ""
        lines.append(f"Thread {number} (LWP {thread.tid}){name}:")
        lines += stack(thread.frames)
        if thread.cut_short:
            lines.append(f"({thread.cut_short})")
        lines.append("")
    for coroutine in look.coroutines:
        coroutines.append(msgspec.structs.replace(coroutine, line=len(lines) + 1))
        lines.append(f"Coroutine at 0x{coroutine.address:08x}:")
        lines += stack(coroutine.frames)
        lines.append("")
    rendered = msgspec.structs.replace(look, threads=tuple(threads), coroutines=tuple(coroutines))
    return Rendered("\n".join(lines), rendered)


def stack(frames: Iterable[Frame]) -> list[str]:
    """Return the lines of one stack."""
    return [_line(number, frame) for number, frame in enumerate(frames)]


def _line(number: int, frame: Frame) -> str:
    start = f"#{number:<3} " if number < 1000 else f"#{number} "
    if frame.function.startswith("<"):
        return f"{start}{frame.function}"
    address = f"0x{frame.pc:016x} in " if frame.pc else ""
    name = frame.function or "??"
    if frame.offset:
        return f"{start}0x{frame.pc:016x} {name} ({frame.module or 'n/a'} + {frame.offset:#x})"
    place = f" at {frame.file}:{frame.line}" if frame.line else f" at {frame.file}" if frame.file else ""
    return f"{start}{address}{name} (){place or (f' from {frame.module}' if frame.module else '')}"
