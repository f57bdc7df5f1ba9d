"""Reads the lines that say whose stack follows: a thread's header, or a coroutine that qemu-gdb.py was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autopsy.dataclass import dataclass
from autopsy.incoming.stacks.frame_line import HEX

MOST_TID = 1 << 31
MOST_NAME = 64


@dataclass(frozen=True, slots=True)
class Header:
    """Whose stack follows. `number` is gdb's own for a thread, `tid` the kernel's, 0 where it is not told."""

    number: int
    tid: int
    name: str = ""
    coroutine: int = 0
    rest: str = ""  # a frame in the same line, as `info threads` prints it
    dumped: bool = False  # by systemd-coredump, which tells of every program that crashed
    selected: bool = False  # `thread N` prints one frame of it, and `bt` the whole stack after that
    brief: bool = False  # as ABRT tells it on a web page: frames without address and arguments


def header(line: str) -> Header | None:
    """Return what a line says of the stack after it, None for any other line."""
    bare = line.strip(" ").rstrip(":")
    for start, read in STARTS:
        if bare.startswith(start):
            return read(bare[len(start) :])
    if "coroutine" in bare[:40].lower() and "0x" in bare and not bare.startswith("#"):
        return _coroutine(bare)
    return _listed(bare)


def _brief(text: str) -> Header | None:
    """Read `1 (10 frames)`, as ABRT writes it where people read it."""
    digits = _digits(text)
    return Header(int(digits), 0, brief=True) if digits and "frame" in text else None


def _dumped(text: str) -> Header | None:
    head = _only(text)
    return replace(head, dumped=True) if head else None


def _current(text: str) -> Header | None:
    """Read `[Current thread is 1 (…)]`, which gdb prints by itself."""
    head = _gdb(text.removeprefix("is "))
    return replace(head, selected=True) if head else None


def _gdb(text: str) -> Header | None:
    """Read `3 (Thread 0x7f.. (LWP 15741) "CPU 0/KVM")` and every older form of it."""
    digits = _digits(text) if "(" in text else ""
    if not digits:
        return None
    tid = _tid(text)
    name = text[text.index('"') + 1 : text.rindex('"')] if text.count('"') > 1 else ""
    return Header(int(digits), tid or 0, name[:MOST_NAME])


def _only(text: str) -> Header | None:
    digits = _digits(text)
    return Header(0, int(digits)) if digits else None


def _coroutine(text: str) -> Header | None:
    """Read `qemu coroutine 0x7f…` as it was typed, and `Coroutine at 0x7f…:` as it is printed."""
    start = text.index("0x") + 2
    end = start
    while end < len(text) and text[end] in HEX:
        end += 1
    return Header(0, 0, coroutine=int(text[start:end], 16)) if 4 <= end - start <= 16 else None


def _listed(text: str) -> Header | None:
    """Read a line of `info threads`: `* 1    Thread 0x7f.. (LWP 15741) "name" poll () at …`."""
    text = text.removeprefix("*").strip(" ")
    digits = _digits(text)
    rest = text[len(digits) :].strip(" ")
    if not digits or not rest.startswith(("Thread 0x", "LWP ", "process ")):
        return None
    tid = _tid(rest)
    if not tid:
        return None
    after = rest.partition(f"LWP {tid}")[2].removeprefix(")").strip(" ") or rest.partition(str(tid))[2].strip(" ")
    name = ""
    if after.startswith('"'):
        name, _, after = after[1:].partition('" ')
    return Header(int(digits), tid, name.rstrip('"')[:MOST_NAME], rest=after.strip(" "))


def _tid(text: str) -> int:
    for kind in ("LWP ", "process "):
        place = text.find(kind)
        if place >= 0 and (digits := _digits(text[place + len(kind) :])):
            return int(digits)
    return 0


def _digits(text: str) -> str:
    end = 0
    while end < min(len(text), 11) and text[end] in "0123456789":
        end += 1
    return text[:end] if 0 < end < 11 and int(text[:end]) < MOST_TID else ""


STARTS: tuple[tuple[str, Callable[[str], Header | None]], ...] = (
    ("Thread no. ", _brief),
    ("Thread ", _gdb),
    ("Stack trace of thread ", _dumped),
    ("TID ", _only),
    ("[Switching to thread ", _current),
    ("[Current thread ", _current),
)
